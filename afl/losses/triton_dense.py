"""The fused element loss for dense targets on a GPU: the computation of ``dense``, in one kernel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from afl.losses.fused import gradient_type
from afl.losses.triton_element import GAMMA_ANY, GAMMA_TWO, GAMMA_ZERO, soft_terms
from afl.losses.triton_launch import WARPS, block_size, on_device_of, stored_type

_KINDS = {0.0: GAMMA_ZERO.value, 2.0: GAMMA_TWO.value}


def loss_and_gradient(
    logits: Tensor,
    targets: Tensor,
    class_weights: Tensor | None,
    strength: Tensor | None,
    alpha: float,
    gamma: float,
    scale: float,
    each: bool,
    differentiable: bool,
) -> tuple[Tensor, Tensor | None]:
    """Losses of the logits' shape with ``each``, else ``scale`` times their sum, float32; and the gradient, or None.

    Args:
        logits, targets: (..., C).
        class_weights: (C,) or None; strength: kappa / tau of the gate, scalar or (C,), or None.
    """
    logits, targets = logits.contiguous(), targets.contiguous()
    elements, classes = logits.numel(), logits.shape[-1] if logits.ndim else 1
    gradient = (
        torch.empty_like(logits, dtype=stored_type(gradient_type(logits.dtype))) if differentiable else None
    )
    losses = torch.empty(logits.shape, dtype=torch.float32, device=logits.device) if each else None
    block = block_size(elements)
    partial = torch.zeros(max(triton.cdiv(elements, block), 1), device=logits.device)
    if elements:
        with on_device_of(logits):
            _elements[(triton.cdiv(elements, block),)](
                logits,
                targets,
                gradient,
                losses,
                partial,
                None if class_weights is None else class_weights.contiguous(),
                None if strength is None else strength.contiguous(),
                alpha,
                gamma,
                scale,
                elements,
                STRENGTH_OF_CLASS=strength is not None and strength.ndim > 0,
                ALPHA=alpha >= 0,
                C=classes,
                KIND=_KINDS.get(gamma, GAMMA_ANY.value),
                BLOCK=block,
                num_warps=WARPS,
            )
    loss = losses if losses is not None else partial.sum(dtype=torch.float64).to(torch.float32)
    return loss, None if gradient is None else gradient.to(gradient_type(logits.dtype))


@triton.jit
def _elements(
    logits,
    targets,
    gradient,
    losses,
    partial,
    class_weights,
    strength,
    alpha,
    gamma,
    scale,
    elements,
    STRENGTH_OF_CLASS: tl.constexpr,
    ALPHA: tl.constexpr,
    C: tl.constexpr,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * BLOCK
    inside = tl.arange(0, BLOCK)
    valid = inside < elements - start
    label = ((start % C).to(tl.int32) + inside) % C
    z = tl.load(logits + start + inside, mask=valid, other=0.0).to(tl.float32)
    y = tl.load(targets + start + inside, mask=valid, other=0.0).to(tl.float32)
    loss, slope = soft_terms(z, y, gamma, KIND, True)
    weight = tl.full(z.shape, 1.0, tl.float32)
    if class_weights is not None:
        own = tl.load(class_weights + label, mask=valid, other=1.0).to(tl.float32)
        weight = 1.0 + (own - 1.0) * y
    factor = weight * scale
    if ALPHA:
        factor = factor * (alpha * y + (1.0 - alpha) * (1.0 - y))
    if strength is not None:
        if STRENGTH_OF_CLASS:
            kappa = tl.load(strength + label, mask=valid, other=0.0).to(tl.float32)
        else:
            kappa = tl.load(strength).to(tl.float32)
        factor = factor / (1.0 + kappa * weight * tl.abs(slope))
    loss = tl.where(valid, factor * loss, 0.0)
    if gradient is not None:
        tl.store(gradient + start + inside, (factor * slope).to(gradient.dtype.element_ty), mask=valid)
    if losses is not None:
        tl.store(losses + start + inside, loss, mask=valid)
    tl.store(partial + tl.program_id(0), tl.sum(loss))
