"""The fused sum of all elements' losses, with its gradient in closed form.

Logits are read once and the gradient written once; nothing else of their size is kept. Almost every element
is a plain negative, so one dense pass, in blocks that stay in the cache, treats all elements as such. The target lists
the exceptions, which are computed separately: the dense pass gives them weight 0 and so writes exact zeros there,
and their values are added afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from afl.losses import table
from afl.losses.fused import gradient_of_logits, gradient_type, no_autocast, save_gradient, uses_triton
from afl.losses.gradient import (
    alpha_balance,
    computing_type,
    distance,
    gate,
    gradient_size,
    inverse_gate,
    modulated_cross_entropy,
    modulation,
    negative_log,
)
from afl.losses.negatives import negative_blocks, weights_by_size
from afl.losses.target import ClassificationTarget
from afl.losses.weighting import ElementWeights, positive_logits


def weighted_loss(
    logits: Tensor, target: ClassificationTarget, weights: ElementWeights, normalizer: Tensor
) -> Tensor:
    """(1 / normalizer) times the sum over elements of W A alpha_t v, differentiable once, in the logits alone.

    Args:
        logits: (R, C), any floating type; computed in float32, float64 stays float64.
        target: sparse target of the map.
        weights: element loss and weights, detached.
        normalizer: scalar tensor, not zero.

    Returns:
        Scalar, float32 (float64 for float64 logits).
    """
    differentiable = torch.is_grad_enabled() and logits.requires_grad
    return _WeightedLoss.apply(logits, target, weights, normalizer, differentiable)


class _WeightedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, target, weights, normalizer, differentiable):
        with no_autocast(logits.device):
            loss, gradient = _loss_and_gradient(logits, target, weights, normalizer, differentiable)
        if differentiable:
            save_gradient(ctx, gradient, logits.dtype)
        return loss

    @staticmethod
    def backward(ctx, upstream):
        return gradient_of_logits(ctx, upstream), None, None, None, None


def _loss_and_gradient(
    logits: Tensor,
    target: ClassificationTarget,
    weights: ElementWeights,
    normalizer: Tensor,
    differentiable: bool,
) -> tuple[Tensor, Tensor | None]:
    if uses_triton(logits):
        kernels = import_module("afl.losses.triton_kernel")
        return kernels.loss_and_gradient(logits, target, weights, normalizer, differentiable)
    dtype = computing_type(logits.dtype)
    scale: float | Tensor
    if logits.device.type == "cpu":
        # Reading a number from a CPU tensor is free and saves operations.
        scale = 1.0 / normalizer.item()
    else:
        scale = normalizer.detach().to(logits.device, dtype).reciprocal()
    stored = gradient_type(logits.dtype)
    gradient = torch.empty(logits.shape, dtype=stored, device=logits.device) if differentiable else None

    total = _dense_negatives(logits, target, weights, scale * alpha_balance(0.0, weights.alpha), gradient)
    hits = positives(positive_logits(logits, target), target, weights)
    for exceptions in (scaled_negatives(logits, target, weights), hits):
        if exceptions is not None:
            factor = exceptions.weight * exceptions.alpha * scale
            loss = torch.where(exceptions.valid, factor * exceptions.loss, 0.0)
            total = total + loss.sum(dtype=torch.float64)
            if differentiable:
                # The dense pass left exact zeros there; padding adds a zero to the first element.
                value = torch.where(exceptions.valid, factor * exceptions.gradient, 0.0).to(gradient.dtype)
                gradient.view(-1).index_add_(0, exceptions.index, value)
    return total.to(dtype), gradient


def _dense_negatives(
    logits: Tensor,
    target: ClassificationTarget,
    weights: ElementWeights,
    scale: float | Tensor,
    gradient: Tensor | None,
) -> Tensor:
    """Sum over the plain negatives of scale W A v, a float64 scalar; fills ``gradient`` unless it is None."""
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    # With alpha = 1 all losses are 0, gated or not.
    strength: float | Tensor = 0.0 if weights.gate is None or weights.alpha == 1.0 else weights.gate
    if isinstance(strength, Tensor) and strength.ndim == 0 and strength.device.type == "cpu":
        # A number saves operations, and reading it from a CPU tensor is free.
        strength = strength.item()
    # An open gate divides by 1: on a CPU, where reading it is free, it is skipped.
    gated = not (isinstance(strength, float) and strength == 0.0)
    if table.serves(logits, target, weights, strength):
        return table.dense_negatives(logits, target, weights, scale, strength, gradient)
    # The gate comes with the scale.
    for block in negative_blocks(logits, target, weights, 1.0 if gated else scale):
        rows = None if gradient is None else gradient[block.start : block.stop]
        # Write into the gradient directly if it has the computing type.
        direct = rows is not None and rows.dtype == block.spare.dtype
        if not gated:
            total += block.loss.sum()
            if rows is None:
                continue
        size = gradient_size(
            block.g, block.factor, block.loss, weights.gamma, out=rows if direct else block.spare
        )
        if gated:
            divisor = inverse_gate(size, strength, scale, out=block.g)
            total += block.loss.div_(divisor).sum()
            size.div_(divisor)
        if rows is not None and not direct:
            rows.copy_(size)
    return total


@dataclass
class Exceptions:
    """The elements that the dense pass leaves out, one entry each, and their contributions.

    Attributes:
        index: (K,) flat indices, 0 where not valid.
        valid: (K,) bool, false at padding and where another entry takes precedence.
        loss: (K,) v.
        gradient: (K,) dv/dz, signed.
        weight: W A, weights times gate, number or (K,).
        alpha: alpha_t, number or (K,).
    """

    index: Tensor
    valid: Tensor
    loss: Tensor
    gradient: Tensor
    weight: float | Tensor
    alpha: float | Tensor


@torch.no_grad()
def gradient_mass(
    logits: Tensor, target: ClassificationTarget, weights: ElementWeights, *, by_class: bool = True
) -> tuple[Tensor, Tensor]:
    """Sums of |gradient| over the positives and the negatives, without gate and normaliser.

    Returns:
        Positive and negative mass, each float64: (C,) of every class, or (1,) of the whole map.
    """
    ungated = replace(weights, gate=None)
    sums = torch.zeros((2, target.num_classes if by_class else 1), dtype=torch.float64, device=logits.device)
    if uses_triton(logits) and by_class:
        sums[1] += import_module("afl.losses.triton_rows").masses_of_classes(logits, target, ungated)
    elif uses_triton(logits):
        sums[1] += import_module("afl.losses.triton_kernel").negative_mass(logits, target, ungated)
    else:
        for block in negative_blocks(logits, target, ungated, alpha_balance(0.0, weights.alpha)):
            size = gradient_size(block.g, block.factor, block.loss, weights.gamma, out=block.spare)
            sums[1] += size.sum(0) if by_class else size.sum()
    apart = (
        positives(positive_logits(logits, target), target, ungated),
        scaled_negatives(logits, target, ungated),
    )
    for row, exceptions in enumerate(apart):
        if exceptions is not None:
            size = exceptions.weight * exceptions.alpha * exceptions.gradient.abs()
            size = torch.where(exceptions.valid, size, 0.0).to(sums.dtype)
            if by_class:
                sums[row].index_add_(0, exceptions.index % target.num_classes, size)
            else:
                sums[row] += size.sum()
    return sums[0], sums[1]


def scaled_negatives(
    logits: Tensor, target: ClassificationTarget, weights: ElementWeights
) -> Exceptions | None:
    """Losses of the scaled negatives; None if the target lists none, or the map is empty."""
    if target.negative_index is None or not target.negative_index.numel() or not logits.numel():
        return None
    index = target.negative_index.clamp(min=0)
    location = torch.div(index, target.num_classes, rounding_mode="floor")
    label = index % target.num_classes
    valid = (target.negative_index >= 0) & ~_contains(target.positive, index)
    if target.ignored is not None:
        valid &= ~target.ignored[location]
    if target.verified is not None:
        valid &= target.verified[target.image[location], label]

    z = logits.reshape(-1)[index].to(computing_type(logits.dtype))
    if target.shift is not None:
        z = z + target.shift.to(z.dtype)[label]
    gamma = _of_class(weights.gamma, index, target)
    g = torch.sigmoid(z)
    factor = modulation(g, gamma)
    loss = factor * negative_log(z)
    weight = target.negative_scale.to(z.dtype)
    if weights.negative_class is not None:
        weight = weight * weights.negative_class[label]
    if weights.negative_location is not None:
        weight = weight * weights.negative_location[location]
    if weights.negative_element is not None:
        weight = weight * weights.negative_element.reshape(-1)[index]
    if weights.slot is not None and len(weights.negative_slot):
        slot = weights.slot[location]
        weight = weight * torch.where(slot >= 0, weights.negative_slot[slot.clamp(min=0), label], 1.0)
    if weights.negative_bin is not None:
        weight = weight * weights_by_size(weights.negative_bin, g)
    gradient = gradient_size(g, factor, loss, gamma)
    weight = _gated(weight, gradient, _of_class(weights.gate, index, target))
    return Exceptions(index, valid, loss, gradient, weight, alpha_balance(0.0, weights.alpha))


def positives(z: Tensor, target: ClassificationTarget, weights: ElementWeights) -> Exceptions | None:
    """Losses of the positives, hard or soft, from their logits ``z`` (P,); None if the target lists none."""
    if not target.positive.numel():
        return None
    index = target.positive.clamp(min=0)
    gamma = _of_class(weights.gamma_of_positives, index, target)
    if target.value is None:
        x = -z
        g = torch.sigmoid(x)
        factor = modulation(g, gamma)
        loss = factor * negative_log(x)
        gradient = -gradient_size(g, factor, loss, gamma)
        alpha = alpha_balance(1.0, weights.alpha)
    else:
        y = target.value.to(z.dtype)
        loss, gradient = modulated_cross_entropy(z, y, distance, gamma)
        alpha = alpha_balance(y, weights.alpha)
    weight = 1.0 if weights.positive is None else weights.positive.to(z.dtype)
    weight = _gated(weight, gradient, _of_class(weights.gate, index, target))
    return Exceptions(index, target.is_positive, loss, gradient, weight, alpha)


def _gated(weight: float | Tensor, gradient: Tensor, strength: float | Tensor | None) -> float | Tensor:
    return weight if strength is None else weight * gate(weight * gradient.abs(), strength)


def _of_class(value: Any, index: Tensor, target: ClassificationTarget) -> Any:
    """A number for all classes as it is, or the entries (K,) of a (C,) tensor for elements ``index``."""
    return value[index % target.num_classes] if isinstance(value, Tensor) and value.ndim else value


def _contains(members: Tensor, index: Tensor) -> Tensor:
    """(K,) bool, which entries of ``index`` occur in ``members``."""
    if not members.numel():
        return torch.zeros_like(index, dtype=torch.bool)
    ordered = members.sort().values
    position = torch.searchsorted(ordered, index).clamp(max=ordered.numel() - 1)
    return ordered[position] == index
