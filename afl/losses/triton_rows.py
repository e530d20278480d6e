"""Sums over the plain negatives of every location or every class, on a GPU: the logits are read once and no map is written."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from afl.losses.target import ClassificationTarget
from afl.losses.triton_element import bin_of, hard_terms
from afl.losses.triton_kernel import mark, negative_weights
from afl.losses.triton_launch import on_device_of, tile_of
from afl.losses.weighting import ElementWeights

# Programs that share the locations of a sum over all of them.
_PROGRAMS = 1024


def losses_of_locations(
    logits: Tensor, target: ClassificationTarget, weights: ElementWeights
) -> tuple[Tensor, Tensor]:
    """Sum and maximum over classes of W alpha_t v, plain negatives only and without the gate: (R,) float32 each.

    Args:
        logits: (R, C); target, weights: of the map.
    """
    locations, classes = logits.shape
    sums, largest = torch.zeros(2, locations, device=logits.device)
    if not logits.numel():
        return sums, largest
    logits = logits.detach().contiguous()
    rows, columns = tile_of(locations, classes)
    with on_device_of(logits):
        marked, _ = mark(target, logits.numel(), logits.device)
        _by_location[(triton.cdiv(locations, rows),)](
            logits,
            marked,
            sums,
            largest,
            locations=locations,
            C=classes,
            ROWS=rows,
            COLUMNS=columns,
            **negative_weights(target, weights),
        )
    return sums, largest


def masses_of_classes(logits: Tensor, target: ClassificationTarget, weights: ElementWeights) -> Tensor:
    """Sum over locations of W alpha_t |dv/dz|, plain negatives only and without the gate: (C,) float64.

    Args:
        logits: (R, C); target, weights: of the map.
    """
    locations, classes = logits.shape
    if not logits.numel():
        return torch.zeros(classes, dtype=torch.float64, device=logits.device)
    logits = logits.detach().contiguous()
    rows, columns = tile_of(locations, classes)
    # A power of two, because the kernel is compiled for every number of steps.
    steps = triton.next_power_of_2(triton.cdiv(locations, rows * _PROGRAMS))
    programs = triton.cdiv(locations, rows * steps)
    partial = torch.zeros(programs, classes, device=logits.device)
    with on_device_of(logits):
        marked, _ = mark(target, logits.numel(), logits.device)
        _by_class[(programs, triton.cdiv(classes, columns))](
            logits,
            marked,
            partial,
            locations=locations,
            C=classes,
            STEPS=steps,
            ROWS=rows,
            COLUMNS=columns,
            **negative_weights(target, weights),
        )
    return partial.sum(0, dtype=torch.float64)


@triton.jit
def _plain_terms(
    logits,
    marked,
    gamma,
    gamma_of_class,
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
    locations,
    row,
    label,
    C: tl.constexpr,
    KIND: tl.constexpr,
    BINS: tl.constexpr,
):
    """Weighted losses and sizes of gradients of a tile, rows (ROWS,) by labels (1, COLUMNS); 0 at exceptions."""
    real = row < locations
    element = row[:, None] * C + label
    valid = real[:, None] & (label < C)
    word = tl.load(marked + element // 32, mask=valid, other=-1)
    counted = ((word >> (element % 32).to(tl.int32)) & 1) == 0
    if verified is not None:
        own = tl.load(image + row, mask=real, other=0)[:, None]
        counted = counted & (tl.load(verified + own * C + label, mask=counted, other=0) != 0)
    z = tl.load(logits + element, mask=valid, other=0.0).to(tl.float32)
    if shift is not None:
        z += tl.load(shift + label, mask=label < C, other=0.0)
    if gamma_of_class is not None:
        gamma = tl.load(gamma_of_class + label, mask=label < C, other=1.0).to(tl.float32)
    g, q, factor, cross_entropy = hard_terms(z, gamma, KIND)
    factor = factor * balance
    if negative_class is not None:
        factor = factor * tl.load(negative_class + label, mask=label < C, other=0.0).to(tl.float32)
    if negative_location is not None:
        factor = factor * tl.load(negative_location + row, mask=real, other=0.0).to(tl.float32)[:, None]
    if negative_element is not None:
        factor = factor * tl.load(negative_element + element, mask=valid, other=0.0).to(tl.float32)
    if slot is not None:
        own_slot = tl.load(slot + row, mask=real, other=-1).to(tl.int64)[:, None]
        factor = factor * tl.load(
            negative_slot + own_slot * C + label, mask=(own_slot >= 0) & valid, other=1.0
        )
    if negative_bin is not None:
        factor = factor * tl.load(negative_bin + bin_of(g, BINS))
    loss = factor * cross_entropy
    size = g * factor + q * gamma * loss
    return tl.where(counted, loss, 0.0), tl.where(counted, size, 0.0)


@triton.jit(do_not_specialize=["locations"])
def _by_location(
    logits,
    marked,
    sums,
    largest,
    gamma,
    gamma_of_class,
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
    locations,
    C: tl.constexpr,
    KIND: tl.constexpr,
    BINS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros((ROWS,), tl.float32)
    most = tl.zeros((ROWS,), tl.float32)
    for first in range(0, C, COLUMNS):
        label = first + tl.arange(0, COLUMNS)[None, :]
        # fmt: off
        loss, _ = _plain_terms(
            logits, marked, gamma, gamma_of_class, verified, image, negative_class, negative_location,
            negative_element, slot, negative_slot, negative_bin, shift, balance, locations, row, label, C, KIND, BINS,
        )
        # fmt: on
        total += tl.sum(loss, 1)
        most = tl.maximum(most, tl.max(loss, 1))
    tl.store(sums + row, total, mask=row < locations)
    tl.store(largest + row, most, mask=row < locations)


@triton.jit(do_not_specialize=["locations"])
def _by_class(
    logits,
    marked,
    partial,
    gamma,
    gamma_of_class,
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
    locations,
    C: tl.constexpr,
    STEPS: tl.constexpr,
    KIND: tl.constexpr,
    BINS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    label = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    total = tl.zeros((1, COLUMNS), tl.float32)
    for step in range(STEPS):
        row = (tl.program_id(0).to(tl.int64) * STEPS + step) * ROWS + tl.arange(0, ROWS)
        # fmt: off
        _, size = _plain_terms(
            logits, marked, gamma, gamma_of_class, verified, image, negative_class, negative_location,
            negative_element, slot, negative_slot, negative_bin, shift, balance, locations, row, label, C, KIND, BINS,
        )
        # fmt: on
        total += tl.sum(size, 0)[None, :]
    tl.store(partial + tl.program_id(0) * C + label, total, mask=label < C)
