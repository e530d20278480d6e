"""The fused loss of a map with a sparse target, on a GPU: logits read once, gradient written once.

The kernels share one bitmap, a bit for every element of the map. Small kernels first set the bits of the positives, of the
negatives with a scale, and of ignored locations. The dense kernel then reads the whole map and treats every element without
a bit as a plain negative; elsewhere it writes 0. It loads and stores whole vectors without a mask, so memory is accessed
128 bits at a time. Its arithmetic is kept short, because on bfloat16 logits it takes longer than the memory does. Positives
and scaled negatives follow and write their own gradients over those zeros; where both name an element, the positive counts.
All weightings of a chain are applied inside, in float32 whatever the logits' type; sums go through one partial sum per
program, so two runs agree to the bit.

With TRITON_INTERPRET=1 in the environment before triton is imported, the kernels run on a CPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from afl.losses.fused import gradient_type
from afl.losses.gradient import alpha_balance
from afl.losses.target import ClassificationTarget
from afl.losses.triton_element import (
    GAMMA_ANY,
    GAMMA_TWO,
    GAMMA_ZERO,
    LN_2,
    NEVER,
    bin_of,
    hard_terms,
    negative_terms,
    reciprocal,
    soft_terms,
)
from afl.losses.triton_launch import block_size, interpreted, launch_options, on_device_of, stored_type
from afl.losses.weighting import ElementWeights

# Elements of a program that goes through a list.
_BLOCK_OF_LIST = 256
# Elements that a program over the map reads at once: a vector of 16 bytes for every thread.
_BLOCK = 2048
# Such blocks of one program: more spare the work at its begin and end, as long as there are many programs for each processor.
_MOST_STEPS, _PROGRAMS = 8, 4096


def loss_and_gradient(
    logits: Tensor,
    target: ClassificationTarget,
    weights: ElementWeights,
    normalizer: Tensor,
    differentiable: bool,
) -> tuple[Tensor, Tensor | None]:
    """What ``primitive.weighted_loss`` returns, float32, and its gradient (R, C) in its ``gradient_type``, or None."""
    logits = logits.contiguous()
    gradient = (
        torch.empty_like(logits, dtype=stored_type(gradient_type(logits.dtype))) if differentiable else None
    )
    partial = _launch(logits, target, weights, normalizer.detach().float(), gradient, mass=False)
    loss = partial.sum(dtype=torch.float64).to(torch.float32)
    return loss, None if gradient is None else gradient.to(gradient_type(logits.dtype))


def negative_mass(logits: Tensor, target: ClassificationTarget, weights: ElementWeights) -> Tensor:
    """Sum of |gradient| over all plain negatives, without gate and normaliser: a float64 scalar."""
    one = torch.ones((), device=logits.device)
    return _launch(logits.contiguous(), target, weights, one, None, mass=True).sum(dtype=torch.float64)


def _launch(
    logits: Tensor,
    target: ClassificationTarget,
    weights: ElementWeights,
    normalizer: Tensor,
    gradient: Tensor | None,
    mass: bool,
) -> Tensor:
    """Run the kernels; the partial sums of the loss, or of the plain negatives' gradients with ``mass``."""
    classes, elements, device = target.num_classes, logits.numel(), logits.device
    if not elements:
        return torch.zeros(1, device=device)
    block = block_size(elements) if interpreted() else _BLOCK
    steps = _steps(elements)
    sparse = block if interpreted() else _BLOCK_OF_LIST
    positives = target.positive.numel()
    scaled = 0 if target.negative_index is None else target.negative_index.numel()
    blocks = [
        triton.cdiv(elements, block * steps),
        triton.cdiv(positives, sparse),
        triton.cdiv(scaled, sparse),
    ]
    partial = torch.zeros(blocks[0] if mass else sum(blocks), device=device)
    common = {
        "logits": logits,
        "gradient": gradient,
        "gate": None if weights.gate is None or mass else weights.gate.contiguous(),
        "GATE_OF_CLASS": weights.gate is not None and weights.gate.ndim > 0,
        "normalizer": normalizer,
        "C": classes,
    }
    where = negative_weights(target, weights)
    with on_device_of(logits):
        marked, free = mark(target, elements, device)
        _plain_negatives[(blocks[0],)](
            partial=partial,
            marked=marked.view(torch.uint8),
            elements=elements,
            MASS=mass,
            BLOCK=block,
            VECTOR=16 // logits.element_size(),
            STEPS=steps,
            **launch_options(),
            **common,
            **where,
        )
        if positives and not mass:
            _positives[(blocks[1],)](
                partial=partial[blocks[0] :],
                index=target.positive.contiguous(),
                value=_contiguous(target.value),
                weight=_contiguous(weights.positive),
                shift=where["shift"],
                positive_shift=None
                if target.positive_shift is None
                else target.positive_shift.float().contiguous(),
                alpha=weights.alpha,
                ALPHA=weights.alpha >= 0,
                count=positives,
                BLOCK=sparse,
                **_gamma(weights.gamma_of_positives, classes),
                **common,
            )
        if scaled and not mass:
            _scaled_negatives[(blocks[2],)](
                partial=partial[blocks[0] + blocks[1] :],
                index=target.negative_index.contiguous(),
                free=free,
                scale=target.negative_scale.contiguous(),
                ignored=bytes_of(target.ignored),
                count=scaled,
                BLOCK=sparse,
                **common,
                **where,
            )
    return partial


def _steps(elements: int) -> int:
    """Blocks of one program, a power of two because the kernel is compiled for every number."""
    if interpreted():
        return 1
    return min(_MOST_STEPS, 1 << max((elements // (_BLOCK * _PROGRAMS)).bit_length() - 1, 0))


def mark(target: ClassificationTarget, elements: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The bitmap of everything that is not a plain negative, and (K,) uint8, which scaled negatives are not positives."""
    marked = torch.zeros(triton.cdiv(elements, 32), dtype=torch.int32, device=device)
    classes, block = target.num_classes, block_size(elements) if interpreted() else _BLOCK_OF_LIST
    scaled = 0 if target.negative_index is None else target.negative_index.numel()
    free = torch.empty(max(scaled, 1), dtype=torch.uint8, device=device)
    for index, into in ((target.positive, None), (target.negative_index, free)):
        if index is not None and index.numel():
            programs = triton.cdiv(index.numel(), block)
            _mark_listed[(programs,)](marked, index.contiguous(), into, count=index.numel(), BLOCK=block)
    if target.ignored is not None:
        words = triton.next_power_of_2(classes // 32 + 2)
        rows = triton.next_power_of_2(max(block // words, 1))
        programs = triton.cdiv(len(target.ignored), rows)
        _mark_ignored[(programs,)](
            marked, bytes_of(target.ignored), count=len(target.ignored), C=classes, ROWS=rows, WORDS=words
        )
    return marked, free


def negative_weights(target: ClassificationTarget, weights: ElementWeights) -> dict:
    """The kernels' arguments for the weights of negatives."""
    return {
        "verified": bytes_of(target.verified),
        "image": None if target.verified is None else target.image.contiguous(),
        **_gamma(weights.gamma, target.num_classes),
        "negative_class": _contiguous(weights.negative_class),
        "negative_location": _contiguous(weights.negative_location),
        "negative_element": _contiguous(weights.negative_element),
        "slot": _contiguous(weights.slot),
        "negative_slot": None if weights.slot is None else weights.negative_slot.float().contiguous(),
        "negative_bin": None if weights.negative_bin is None else weights.negative_bin.float().contiguous(),
        "BINS": 0 if weights.negative_bin is None else len(weights.negative_bin),
        "shift": None if target.shift is None else target.shift.float().contiguous(),
        "balance": float(alpha_balance(0.0, weights.alpha)),
    }


def _gamma(gamma: float | Tensor, classes: int) -> dict:
    """The kernels' arguments for a focusing exponent."""
    if isinstance(gamma, Tensor):
        of_class = gamma.expand(classes).contiguous()
        return {"gamma": 0.0, "gamma_of_class": of_class, "KIND": GAMMA_ANY.value}
    kind = {0.0: GAMMA_ZERO.value, 2.0: GAMMA_TWO.value}.get(gamma, GAMMA_ANY.value)
    return {"gamma": float(gamma), "gamma_of_class": None, "KIND": kind}


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    if tensor is None:
        return None
    return bytes_of(tensor) if tensor.dtype == torch.bool else tensor.contiguous()


def bytes_of(mask: Tensor | None) -> Tensor | None:
    """A bool tensor as bytes, which a kernel can load; no copy."""
    return None if mask is None else mask.contiguous().view(torch.uint8)


@triton.jit(do_not_specialize=["count"])
def _mark_listed(marked, index, free, count, BLOCK: tl.constexpr):
    """Set the bits of listed elements; ``free`` receives whether each bit was 0 before."""
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    element = tl.load(index + entry, mask=entry < count, other=-1)
    valid = element >= 0
    element = tl.where(valid, element, 0)
    bit = (element % 32).to(tl.int32)
    one = tl.full(element.shape, 1, tl.int32)
    before = tl.atomic_or(marked + element // 32, one << bit, mask=valid)
    if free is not None:
        was_free = valid & (((before >> bit) & 1) == 0)
        tl.store(free + entry, was_free.to(tl.uint8), mask=entry < count)


@triton.jit(do_not_specialize=["count"])
def _mark_ignored(marked, ignored, count, C: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """Set the bits of all elements of ignored locations."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    hidden = tl.load(ignored + row, mask=row < count, other=0) != 0
    first = row.to(tl.int64)[:, None] * C
    word = first // 32 + tl.arange(0, WORDS)[None, :]
    # Bits from ``low`` up to ``high``, exclusive, belong to the location.
    low = tl.maximum(first - word * 32, 0).to(tl.int32)
    high = tl.minimum(first + C - word * 32, 32).to(tl.int32)
    inside = hidden[:, None] & (high > low)
    ones = tl.full((ROWS, WORDS), -1, tl.int32)
    upper = tl.where(high < 32, ~(ones << tl.where(inside, high % 32, 0)), ones)
    bits = upper & (ones << tl.where(inside, low, 0))
    tl.atomic_or(marked + word, bits, mask=inside)


@triton.jit
def _gate_of(gate, size, label, GATE_OF_CLASS: tl.constexpr, valid):
    """The Adaptive Gradient Function's gate for weighted gradients of this size."""
    if GATE_OF_CLASS:
        strength = tl.load(gate + label, mask=valid, other=0.0).to(tl.float32)
    else:
        strength = tl.load(gate).to(tl.float32)
    return reciprocal(1.0 + strength * size)


@triton.jit(do_not_specialize=["count"])
def _positives(
    logits,
    gradient,
    gamma,
    gamma_of_class,
    gate,
    normalizer,
    partial,
    index,
    value,
    weight,
    shift,
    positive_shift,
    alpha,
    count,
    GATE_OF_CLASS: tl.constexpr,
    C: tl.constexpr,
    KIND: tl.constexpr,
    ALPHA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    element = tl.load(index + entry, mask=entry < count, other=-1)
    valid = element >= 0
    element = tl.where(valid, element, 0)
    z = tl.load(logits + element, mask=valid, other=0.0).to(tl.float32)
    label = element % C
    if shift is not None:
        z += tl.load(shift + label, mask=valid, other=0.0)
    if positive_shift is not None:
        z += tl.load(positive_shift + entry, mask=valid, other=0.0)
    if gamma_of_class is not None:
        gamma = tl.load(gamma_of_class + label, mask=valid, other=1.0).to(tl.float32)
    if value is None:
        g, q, factor, cross_entropy = hard_terms(-z, gamma, KIND)
        loss = factor * cross_entropy
        slope = -(g * factor + q * gamma * loss)
        balance = tl.full(z.shape, 1.0, tl.float32)
        if ALPHA:
            balance = balance * alpha
    else:
        y = tl.load(value + entry, mask=valid, other=0.0).to(tl.float32)
        loss, slope = soft_terms(z, y, gamma, KIND, False)
        balance = tl.full(z.shape, 1.0, tl.float32)
        if ALPHA:
            balance = alpha * y + (1.0 - alpha) * (1.0 - y)
    total = tl.full(z.shape, 1.0, tl.float32)
    if weight is not None:
        total = tl.load(weight + entry, mask=valid, other=0.0).to(tl.float32)
    if gate is not None:
        total = total * _gate_of(gate, total * tl.abs(slope), label, GATE_OF_CLASS, valid)
    total = total * balance / tl.load(normalizer)
    if gradient is not None:
        tl.store(gradient + element, (total * slope).to(gradient.dtype.element_ty), mask=valid)
    tl.store(partial + tl.program_id(0), tl.sum(tl.where(valid, total * loss, 0.0)))


@triton.jit(do_not_specialize=["count"])
def _scaled_negatives(
    logits,
    gradient,
    gamma,
    gamma_of_class,
    gate,
    normalizer,
    ignored,
    verified,
    image,
    negative_class,
    negative_location,
    negative_element,
    slot,
    negative_slot,
    negative_bin,
    shift,
    balance,
    partial,
    index,
    free,
    scale,
    count,
    GATE_OF_CLASS: tl.constexpr,
    C: tl.constexpr,
    KIND: tl.constexpr,
    BINS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    element = tl.load(index + entry, mask=entry < count, other=-1)
    valid = element >= 0
    element = tl.where(valid, element, 0)
    counts = valid & (tl.load(free + entry, mask=valid, other=0) != 0)
    row, label = element // C, element % C
    counted = counts
    if ignored is not None:
        counted = counted & (tl.load(ignored + row, mask=counts, other=1) == 0)
    if verified is not None:
        own = tl.load(image + row, mask=counts, other=0)
        counted = counted & (tl.load(verified + own * C + label, mask=counts, other=0) != 0)
    z = tl.load(logits + element, mask=counted, other=0.0).to(tl.float32)
    if shift is not None:
        z += tl.load(shift + label, mask=counts, other=0.0)
    if gamma_of_class is not None:
        gamma = tl.load(gamma_of_class + label, mask=counts, other=1.0).to(tl.float32)
    total = tl.load(scale + entry, mask=counts, other=0.0).to(tl.float32)
    if negative_class is not None:
        total = total * tl.load(negative_class + label, mask=counts, other=0.0).to(tl.float32)
    if negative_location is not None:
        total = total * tl.load(negative_location + row, mask=counts, other=0.0).to(tl.float32)
    if negative_element is not None:
        total = total * tl.load(negative_element + element, mask=counts, other=0.0).to(tl.float32)
    if slot is not None:
        own = tl.load(slot + row, mask=counts, other=-1).to(tl.int64)
        total = total * tl.load(negative_slot + own * C + label, mask=own >= 0, other=1.0)
    g, q, factor, cross_entropy = hard_terms(z, gamma, KIND)
    if negative_bin is not None:
        total = total * tl.load(negative_bin + bin_of(g, BINS))
    loss = factor * cross_entropy
    size = g * factor + q * gamma * loss
    if gate is not None:
        total = total * _gate_of(gate, total * size, label, GATE_OF_CLASS, counts)
    total = tl.where(counted, total * balance / tl.load(normalizer), 0.0)
    if gradient is not None:
        tl.store(gradient + element, (total * size).to(gradient.dtype.element_ty), mask=counts)
    tl.store(partial + tl.program_id(0), tl.sum(total * loss))


@triton.jit
def _plain_negatives(
    logits,
    gradient,
    marked,
    gamma,
    gamma_of_class,
    gate,
    normalizer,
    verified,
    image,
    negative_class,
    negative_location,
    negative_element,
    slot,
    negative_slot,
    negative_bin,
    shift,
    balance,
    partial,
    elements,
    GATE_OF_CLASS: tl.constexpr,
    C: tl.constexpr,
    KIND: tl.constexpr,
    BINS: tl.constexpr,
    MASS: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
    STEPS: tl.constexpr,
):
    # A map may have more than 2^31 elements: the start of a block takes 64 bits, positions inside it take 32.
    first = tl.program_id(0).to(tl.int64) * (STEPS * BLOCK)
    # Only the last program needs masks; all others access memory by whole vectors.
    # fmt: off
    if first + STEPS * BLOCK <= elements:
        total = _blocks(
            logits, gradient, marked, gamma, gamma_of_class, gate, normalizer, verified, image, negative_class, negative_location,
            negative_element, slot, negative_slot, negative_bin, shift, balance, first, elements, GATE_OF_CLASS, C, KIND, BINS,
            MASS, BLOCK, VECTOR, STEPS, True,
        )
    else:
        total = _blocks(
            logits, gradient, marked, gamma, gamma_of_class, gate, normalizer, verified, image, negative_class, negative_location,
            negative_element, slot, negative_slot, negative_bin, shift, balance, first, elements, GATE_OF_CLASS, C, KIND, BINS,
            MASS, BLOCK, VECTOR, STEPS, False,
        )
    # fmt: on
    tl.store(partial + tl.program_id(0), total)


@triton.jit
def _blocks(
    logits,
    gradient,
    marked,
    gamma,
    gamma_of_class,
    gate,
    normalizer,
    verified,
    image,
    negative_class,
    negative_location,
    negative_element,
    slot,
    negative_slot,
    negative_bin,
    shift,
    balance,
    first,
    elements,
    GATE_OF_CLASS: tl.constexpr,
    C: tl.constexpr,
    KIND: tl.constexpr,
    BINS: tl.constexpr,
    MASS: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
    STEPS: tl.constexpr,
    FULL: tl.constexpr,
):
    """Gradients of ``STEPS`` blocks from element ``first`` on, and the sum of their losses, or of their gradients with MASS."""
    # Elements in vectors of 16 bytes, one thread each, so that the bits of a vector are in one byte and shifts are constants.
    vector = tl.arange(0, BLOCK // VECTOR)[:, None]
    lane = tl.arange(0, VECTOR)[None, :]
    inside = vector * VECTOR + lane
    scale = balance / tl.load(normalizer).to(tl.float32)
    # The gate gets gradients that are scaled already.
    per_scale = tl.where(scale > 0, 1.0 / scale, 0.0)
    if gate is not None and not GATE_OF_CLASS:
        strength = tl.load(gate).to(tl.float32) * per_scale
    total = tl.zeros((BLOCK // VECTOR, VECTOR), tl.float32)
    for step in range(STEPS):
        start = first + step * BLOCK
        left = tl.minimum(elements - start, BLOCK).to(tl.int32)
        bits_at = marked + start // 8 + vector * VECTOR // 8
        if FULL:
            z = tl.load(logits + start + inside)
            bits = tl.load(bits_at)
        else:
            z = tl.load(logits + start + inside, mask=inside < left, other=0.0)
            bits = tl.load(bits_at, mask=vector * VECTOR < left, other=255)
        counted = (((bits.to(tl.int32) >> (vector * VECTOR % 8)) >> lane) & 1) == 0
        if not FULL:
            counted = counted & (inside < left)
        first_row = start // C
        place = (start - first_row * C).to(tl.int32) + inside
        row, label = place // C, place % C
        if verified is not None:
            own = tl.load(image + first_row + row, mask=counted, other=0)
            counted = counted & (tl.load(verified + own * C + label, mask=counted, other=0) != 0)
        z = z.to(tl.float32)
        if shift is not None:
            z += tl.load(shift + label)
        # Selecting and not multiplying by 0, so that a logit that is not finite stays out.
        z = tl.where(counted, z, NEVER)
        if gamma_of_class is not None:
            gamma = tl.load(gamma_of_class + label).to(tl.float32)
        g, factor, rest, softplus = negative_terms(z, gamma, KIND)
        if negative_class is not None:
            factor = factor * tl.load(negative_class + label).to(tl.float32)
        if negative_location is not None:
            own = tl.load(negative_location + first_row + row, mask=counted, other=0.0)
            factor = factor * own.to(tl.float32)
        if negative_element is not None:
            own = tl.load(negative_element + start + inside, mask=counted, other=0.0)
            factor = factor * own.to(tl.float32)
        if slot is not None:
            own_slot = tl.load(slot + first_row + row, mask=counted, other=-1).to(tl.int64)
            own = tl.load(negative_slot + own_slot * C + label, mask=own_slot >= 0, other=1.0)
            factor = factor * own
        if negative_bin is not None:
            factor = factor * tl.load(negative_bin + bin_of(g, BINS))
        factor = factor * scale
        size = factor * (g + rest * softplus)
        if gate is not None:
            if GATE_OF_CLASS:
                strength = tl.load(gate + label).to(tl.float32) * per_scale
            opened = reciprocal(1.0 + strength * size)
            factor, size = factor * opened, size * opened
        if gradient is not None:
            values = size.to(gradient.dtype.element_ty)
            if FULL:
                tl.store(gradient + start + inside, values)
            else:
                tl.store(gradient + start + inside, values, mask=inside < left)
        if MASS:
            total += size
        else:
            total += factor * softplus
    return tl.sum(total) * (1.0 if MASS else LN_2)
