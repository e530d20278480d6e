"""Shared code of the losses that rank positives above negatives.

Their value is not a sum over elements, so they cannot be a chain of weightings, but they read the same sparse target.
Every element has a mass as a positive and a mass as a rival:

    positive            value (1 if hard)      and 1 - value as a rival
    plain negative      0                      1
    scaled negative     0                      its scale, (1 - Y)^4 on heat maps
    ignored, unverified 0                      0
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from afl.losses.fused import block_rows, gradient_of_logits, no_autocast, save_gradient, uses_triton
from afl.losses.primitive import scaled_negatives
from afl.losses.sampling import CROSS_ENTROPY
from afl.losses.target import ClassificationTarget
from afl.losses.weighting import positive_logits

_BLOCK = 1 << 16


@dataclass(frozen=True)
class Listed:
    """K elements that are not plain negatives.

    Attributes:
        index: (K,) flat indices, 0 at padding.
        logit: (K,) float64, 0 at padding.
        mass: (K,) float64, 0 at padding.
        image: (K,) int64.
    """

    index: Tensor
    logit: Tensor
    mass: Tensor
    image: Tensor


def listed_positives(logits: Tensor, target: ClassificationTarget) -> Listed:
    """The target's positives, in its order."""
    value = target.is_positive if target.value is None else torch.where(target.is_positive, target.value, 0.0)
    z = torch.where(target.is_positive, positive_logits(logits, target).double(), 0.0)
    index = target.positive.clamp(min=0)
    return Listed(index, z, value.double(), _image(target, index))


def listed_rivals(logits: Tensor, target: ClassificationTarget, positives: Listed) -> Listed:
    """Scaled negatives, followed by soft positives with their mass as rivals."""
    parts = []
    near = scaled_negatives(logits, target, CROSS_ENTROPY)
    if near is not None:
        mass = torch.where(near.valid, target.negative_scale.double(), 0.0)
        z = torch.where(near.valid, logits.reshape(-1)[near.index].double(), 0.0)
        parts.append(Listed(near.index, z, mass, _image(target, near.index)))
    if target.value is not None:
        mass = torch.where(target.is_positive, 1.0 - positives.mass, 0.0)
        parts.append(Listed(positives.index, positives.logit, mass, positives.image))
    empty = Listed(positives.index[:0], positives.logit[:0], positives.mass[:0], positives.image[:0])
    return Listed(
        index=torch.cat([part.index for part in (empty, *parts)]),
        logit=torch.cat([part.logit for part in (empty, *parts)]),
        mass=torch.cat([part.mass for part in (empty, *parts)]),
        image=torch.cat([part.image for part in (empty, *parts)]),
    )


def kernels_for(logits: Tensor, target: ClassificationTarget) -> Any:
    """The GPU's passes over the plain negatives (``triton_ranking.PlainNegatives``), or None where torch makes them."""
    if not uses_triton(logits) or not logits.numel():
        return None
    return import_module("afl.losses.triton_ranking").PlainNegatives(logits, target)


def plain_negatives(target: ClassificationTarget) -> Tensor:
    """(R, C) bool: rivals of mass 1."""
    locations, classes = target.num_locations, target.num_classes
    # One element more than the map, where padding is written.
    plain = torch.ones(locations * classes + 1, dtype=torch.bool, device=target.image.device)
    matrix = plain[:-1].view(locations, classes)
    if target.verified is not None:
        matrix &= target.verified[target.image]
    if target.ignored is not None:
        matrix &= ~target.ignored.unsqueeze(1)
    for index in (target.positive, target.negative_index):
        if index is not None:
            plain[torch.where(index >= 0, index, locations * classes)] = False
    return matrix


def row_blocks(logits: Tensor) -> Iterator[slice]:
    """Rows of a map (R, C), as many at once as a cache holds."""
    locations, classes = logits.shape
    step = block_rows(classes, logits.device, _BLOCK)
    return (slice(start, min(start + step, locations)) for start in range(0, locations, step))


def loss_with_gradient(
    logits: Tensor, compute: Callable[[Tensor, bool], tuple[Tensor, Tensor | None]]
) -> Tensor:
    """A loss that computes its own gradient: ``compute`` takes logits and whether a gradient is wanted."""
    return _OwnGradient.apply(logits, compute, torch.is_grad_enabled() and logits.requires_grad)


class _OwnGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, compute, differentiable):
        with no_autocast(logits.device):
            # A heat map of one image is a transposed view, and the passes write to flat positions.
            loss, gradient = compute(logits.contiguous(), differentiable)
        if differentiable:
            save_gradient(ctx, gradient, logits.dtype)
        return loss

    @staticmethod
    def backward(ctx, upstream):
        return gradient_of_logits(ctx, upstream), None, None


def add_at(gradient: Tensor, elements: Listed, value: Tensor) -> None:
    """Add ``value`` (K,) at the elements; it must be 0 at padding."""
    if gradient.numel():
        gradient.view(-1).index_add_(0, elements.index, value.to(gradient.dtype))


def _image(target: ClassificationTarget, index: Tensor) -> Tensor:
    if not target.num_locations:
        return torch.zeros_like(index)
    return target.image[torch.div(index, target.num_classes, rounding_mode="floor")]
