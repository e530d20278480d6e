"""The fused sum of all elements' losses, with its gradient in closed form.

Logits are read once and the gradient written once; nothing else of their size is kept. Almost every element
is a plain negative, so one dense pass, in blocks that stay in the cache, treats all of them as such, and the
exceptions are computed apart: the dense pass sees an exception as a logit of minus infinity, whose loss and
gradient are exactly zero, and the right values are added after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from afl.losses.fused import block_rows, times_upstream
from afl.losses.gradient import (
    alpha_balance,
    computing_type,
    distance,
    gate,
    modulated_cross_entropy,
    modulation,
    negative_log,
    slope,
)
from afl.losses.target import ClassificationTarget
from afl.losses.weighting import ElementWeights, positive_logits

# Elements of a block on a CPU: four float32 buffers of it fit the cache of a core.
_BLOCK = 1 << 16


def weighted_loss(
    logits: Tensor, target: ClassificationTarget, weights: ElementWeights, normalizer: Tensor
) -> Tensor:
    """(1 / normalizer) times the sum over elements of W A alpha_t v, differentiable in the logits alone.

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
        with torch.autocast(device_type=logits.device.type, enabled=False):
            loss, gradient = _loss_and_gradient(logits, target, weights, normalizer, differentiable)
        if differentiable:
            ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        (gradient,) = ctx.saved_tensors
        return times_upstream(gradient, upstream), None, None, None, None


def _loss_and_gradient(
    logits: Tensor,
    target: ClassificationTarget,
    weights: ElementWeights,
    normalizer: Tensor,
    differentiable: bool,
) -> tuple[Tensor, Tensor | None]:
    dtype = computing_type(logits.dtype)
    scale = normalizer.detach().to(logits.device, dtype).reciprocal()
    gradient = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device) if differentiable else None

    total = _dense_negatives(logits, target, weights, scale * alpha_balance(0.0, weights.alpha), gradient)
    hits = positives(positive_logits(logits, target), target, weights)
    for exceptions in (scaled_negatives(logits, target, weights), hits):
        if exceptions is not None:
            factor = torch.where(exceptions.valid, exceptions.weight * exceptions.alpha * scale, 0.0)
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
    scale: Tensor,
    gradient: Tensor | None,
) -> Tensor:
    """Sum over the plain negatives of scale W A v as a float64 scalar; writes the gradient where it is asked
    for."""
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    needs_slope = gradient is not None or weights.gate is not None
    for block in negative_blocks(logits, target, weights, needs_slope):
        factor = block.factor
        if weights.gate is not None:
            closed = gate(torch.mul(factor, block.slope, out=block.spare), weights.gate, out=block.spare)
            factor.mul_(closed)
        factor.mul_(scale)
        total += torch.mul(factor, block.nll, out=block.nll).sum()
        if gradient is not None:
            rows = gradient[block.start : block.stop]
            if rows.dtype == factor.dtype:
                torch.mul(factor, block.slope, out=rows)
            else:
                rows.copy_(factor.mul_(block.slope))
    return total


@dataclass
class NegativeBlock:
    """Rows [start, stop) of a map with every element a plain negative; buffers (n, C) may be overwritten.

    ``factor`` is W g^gamma, so that ``factor * nll`` is the weighted loss and ``factor * slope`` its
    gradient.
    """

    start: int
    stop: int
    factor: Tensor
    nll: Tensor
    slope: Tensor
    spare: Tensor


def negative_blocks(
    logits: Tensor, target: ClassificationTarget, weights: ElementWeights, needs_slope: bool = True
) -> Iterator[NegativeBlock]:
    """All plain negatives of a map, block by block, in the computing type; exceptions come out as zeros.

    Exceptions are the target's positives, its scaled negatives, ignored locations and unverified classes.
    ``slope`` is left undefined unless ``needs_slope``.
    """
    locations, classes = logits.shape
    rows = min(block_rows(classes, logits.device, _BLOCK), max(locations, 1))
    dtype = computing_type(logits.dtype)
    # One element more than a block: where exceptions that lie outside the block are written.
    buffers = torch.empty((4, rows * classes + 1), dtype=dtype, device=logits.device)
    z, g, nll, factor = (buffer[:-1].view(rows, classes) for buffer in buffers)
    eraser = _Eraser(target, locations, rows)
    unverified = None if target.verified is None else ~target.verified

    for number, start in enumerate(range(0, locations, rows)):
        stop = min(start + rows, locations)
        if stop - start < rows:
            z, g, nll, factor = (buffer[: stop - start] for buffer in (z, g, nll, factor))
        z.copy_(logits[start:stop])
        eraser.erase(buffers[0], number, z.numel())
        if target.ignored is not None:
            z.masked_fill_(target.ignored[start:stop, None], -torch.inf)
        if unverified is not None:
            z.masked_fill_(unverified[target.image[start:stop]], -torch.inf)

        torch.sigmoid(z, out=g)
        negative_log(z, out=nll)
        modulation(g, weights.gamma, out=factor)
        if weights.negative_class is not None:
            factor.mul_(weights.negative_class)
        if weights.negative_location is not None:
            factor.mul_(weights.negative_location[start:stop, None])
        if weights.negative_element is not None:
            factor.mul_(weights.negative_element[start:stop])
        if needs_slope:
            slope(g, nll, weights.gamma, out=z)
        yield NegativeBlock(start, stop, factor=factor, nll=nll, slope=z, spare=g)


class _Eraser:
    """The elements that the dense pass must not count, ready to be erased from one block after the other."""

    # Whether exceptions on a CPU are sorted into blocks; elsewhere that would take a look at the device.
    on_host = True

    def __init__(self, target: ClassificationTarget, locations: int, rows: int) -> None:
        lists = [
            index for index in (target.positive, target.negative_index) if index is not None and index.numel()
        ]
        self.index = torch.cat(lists) if lists else None
        self.block = rows * target.num_classes
        self.bounds: list[int] | None = None
        if lists and self.on_host and self.index.device.type == "cpu":
            self.index = self.index.sort().values
            starts = torch.arange(0, locations + rows, rows) * target.num_classes
            self.bounds = torch.searchsorted(self.index, starts).tolist()

    def erase(self, buffer: Tensor, number: int, size: int) -> None:
        """Writes minus infinity at the exceptions of block ``number``, whose ``size`` elements start the
        buffer."""
        if self.index is None:
            return
        if self.bounds is not None:
            index = self.index[self.bounds[number] : self.bounds[number + 1]] - number * self.block
        else:
            # Without asking the device how many there are: the others go to the element behind the block.
            index = self.index - number * self.block
            index = torch.where((index >= 0) & (index < size), index, buffer.numel() - 1)
        if index.numel():
            buffer.index_fill_(0, index, -torch.inf)


@dataclass
class Exceptions:
    """Elements that the dense pass left out, one entry each, and what they add.

    Attributes:
        index: (K,) flat indices, 0 where not valid.
        valid: (K,) bool, false at padding and where something else takes precedence.
        loss: (K,) v.
        gradient: (K,) dv/dz, signed.
        weight: (K,) W A, weights times gate.
        alpha: alpha_t, number or (K,).
    """

    index: Tensor
    valid: Tensor
    loss: Tensor
    gradient: Tensor
    weight: Tensor
    alpha: float | Tensor


@torch.no_grad()
def gradient_mass(
    logits: Tensor, target: ClassificationTarget, weights: ElementWeights
) -> tuple[Tensor, Tensor]:
    """Sums of |gradient| over positives and over negatives of every class, alpha_t in, gate and normaliser
    left out.

    Returns:
        Positive and negative mass, each (C,) float64.
    """
    ungated = replace(weights, gate=None)
    sums = torch.zeros((2, target.num_classes), dtype=torch.float64, device=logits.device)
    for block in negative_blocks(logits, target, ungated):
        sums[1] += block.factor.mul_(block.slope).sum(0)
    sums[1] *= alpha_balance(0.0, weights.alpha)
    apart = (
        positives(positive_logits(logits, target), target, ungated),
        scaled_negatives(logits, target, ungated),
    )
    for row, exceptions in enumerate(apart):
        if exceptions is not None:
            size = exceptions.weight * exceptions.alpha * exceptions.gradient.abs()
            size = torch.where(exceptions.valid, size, 0.0).to(sums.dtype)
            sums[row].index_add_(0, exceptions.index % target.num_classes, size)
    return sums[0], sums[1]


def scaled_negatives(
    logits: Tensor, target: ClassificationTarget, weights: ElementWeights
) -> Exceptions | None:
    """Losses of the negatives with a scale of their own; None where there are none."""
    if target.negative_index is None or not target.negative_index.numel():
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
    gamma = _of_class(weights.gamma, label)
    g, nll = torch.sigmoid(z), negative_log(z)
    factor = modulation(g, gamma)
    weight = target.negative_scale.to(z.dtype)
    if weights.negative_class is not None:
        weight = weight * weights.negative_class[label]
    if weights.negative_location is not None:
        weight = weight * weights.negative_location[location]
    if weights.negative_element is not None:
        weight = weight * weights.negative_element.reshape(-1)[index]
    gradient = factor * slope(g, nll, gamma)
    weight = _gated(weight, gradient, weights.gate, label)
    return Exceptions(index, valid, factor * nll, gradient, weight, alpha_balance(0.0, weights.alpha))


def positives(z: Tensor, target: ClassificationTarget, weights: ElementWeights) -> Exceptions | None:
    """Losses of the positives, hard or soft, from their logits ``z`` (P,); None where there are none."""
    if not target.positive.numel():
        return None
    label = target.positive_class
    gamma = _of_class(weights.gamma, label)
    if target.value is None:
        g, nll = torch.sigmoid(-z), negative_log(-z)
        factor = modulation(g, gamma)
        loss, gradient = factor * nll, -factor * slope(g, nll, gamma)
        alpha = alpha_balance(1.0, weights.alpha)
    else:
        y = target.value.to(z.dtype)
        loss, gradient = modulated_cross_entropy(z, y, distance, gamma)
        alpha = alpha_balance(y, weights.alpha)
    weight = torch.ones_like(z) if weights.positive is None else weights.positive.to(z.dtype)
    weight = _gated(weight, gradient, weights.gate, label)
    return Exceptions(target.positive.clamp(min=0), target.is_positive, loss, gradient, weight, alpha)


def _gated(weight: Tensor, gradient: Tensor, strength: Tensor | None, label: Tensor) -> Tensor:
    return weight if strength is None else weight * gate(weight * gradient.abs(), _of_class(strength, label))


def _of_class(value: float | Tensor, label: Tensor) -> float | Tensor:
    """A number for all classes as it is, or the entries (K,) of a (C,) tensor."""
    return value[label] if isinstance(value, Tensor) and value.ndim else value


def _contains(members: Tensor, index: Tensor) -> Tensor:
    """(K,) bool, which entries of ``index`` occur in ``members``."""
    if not members.numel():
        return torch.zeros_like(index, dtype=torch.bool)
    ordered = members.sort().values
    position = torch.searchsorted(ordered, index).clamp(max=ordered.numel() - 1)
    return ordered[position] == index
