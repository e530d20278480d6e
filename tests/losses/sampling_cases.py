"""Shared parts of the tests of sampling methods: dense losses by the reference, and permuted locations."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from afl.losses import ClassificationTarget, ElementWeights
from afl.losses.reference import alpha_t, dense_target, quality_focal_loss
from tests.losses.cases import random_target


def dense_losses(
    logits: Tensor,
    target: ClassificationTarget,
    *,
    gamma: float = 0.0,
    alpha: float = -1.0,
    class_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(R, C) weighted element losses by the slow reference, 0 where nothing is learnt, and (R, C) whether an
    element is listed as positive, as 1."""
    weights = ElementWeights(alpha=alpha, gamma=gamma)
    if class_weights is not None:
        weights = replace(weights, positive=class_weights[target.positive_class])
    y, weight = dense_target(target, weights, logits)
    listed = torch.zeros(logits.numel())
    listed[target.positive[target.is_positive]] = 1
    return weight * alpha_t(y, alpha) * quality_focal_loss(logits, y, gamma), listed.view_as(logits)


def heat_map(seed: int) -> ClassificationTarget:
    return random_target(seed, scaled=30, ignored=True)


def permuted(target: ClassificationTarget, order: Tensor) -> ClassificationTarget:
    """The target with its locations in another order within their images: new[i] = old[order[i]]."""
    place = order.argsort()

    def moved(index: Tensor | None) -> Tensor | None:
        if index is None:
            return None
        at = index.clamp(min=0)
        element = place[at // target.num_classes] * target.num_classes + at % target.num_classes
        return torch.where(index >= 0, element, index)

    def reordered(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[order]

    return replace(
        target,
        positive=moved(target.positive),
        negative_index=moved(target.negative_index),
        ignored=reordered(target.ignored),
        location_overlap=reordered(target.location_overlap),
    )
