"""|dL/dz| of losses against p, computed by the code that trains, without a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from afl.losses import (
    ClassificationTarget,
    MapInfo,
    MapLoss,
    adaptive_focal_loss,
    class_balanced_focal_loss,
    sigmoid_focal_loss,
)

# Where curves are computed: sigmoid of these is 0.0003 to 0.9997.
LOGITS = torch.linspace(-8.0, 8.0, 161, dtype=torch.float64)


@dataclass(frozen=True)
class Curve:
    """|dL/dz| of one loss at ``LOGITS`` for a positive and for a negative."""

    name: str
    positive: np.ndarray
    negative: np.ndarray


# The map that a loss is drawn for: a frequent class and a rare one.
EXAMPLE_MAP = MapInfo(
    name="example",
    num_classes=2,
    instances_per_class=torch.tensor([1000.0, 2.0]),
    images_per_class=torch.tensor([500.0, 2.0]),
    prior=0.01,
    alpha=-1.0,
    dense_positives=True,
)

# Overlap of the box at an example's positives, for losses that take it as their target.
EXAMPLE_OVERLAP = 0.8
RARE = 1
# A whole map for losses whose gradient of an element depends on the others: positives of all p, and negatives of which most are easy.
MAP_POSITIVES = torch.logit((torch.arange(40, dtype=torch.float64) + 0.5) / 40)
MAP_NEGATIVES = -4.0 + 2.0 * torch.special.ndtri((torch.arange(4000, dtype=torch.float64) + 0.5) / 4000)
MAP_BINS = 20


def gradient_curve(loss: Callable[[Tensor, Tensor], Tensor], target: float) -> np.ndarray:
    """|dL/dz| at ``LOGITS`` of a loss of logits (K, 1) and dense targets (K, 1), by autograd."""
    z = LOGITS.clone().unsqueeze(1).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(z, torch.full_like(z, target)).sum(), z)
    return gradient.squeeze(1).abs().numpy()


def family_curves() -> list[Curve]:
    """Cross-entropy, focal loss, class-balanced focal loss at two weights and AFL from fresh to mature; alpha is off."""

    def curve(name: str, loss: Callable[[Tensor, Tensor], Tensor]) -> Curve:
        return Curve(name, gradient_curve(loss, 1.0), gradient_curve(loss, 0.0))

    def weighted(w: float) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda z, y: class_balanced_focal_loss(z, y, torch.tensor([w], dtype=z.dtype), alpha=-1)

    def gated(w: float, kappa: float) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda z, y: adaptive_focal_loss(z, y, torch.tensor([w], dtype=z.dtype), kappa=kappa, alpha=-1)

    return [
        curve("CE", lambda z, y: sigmoid_focal_loss(z, y, alpha=-1, gamma=0)),
        curve("FL, γ = 2", lambda z, y: sigmoid_focal_loss(z, y, alpha=-1)),
        curve("CBFL, w = 2", weighted(2.0)),
        curve("CBFL, w = 5 (AFL, κ = 0)", weighted(5.0)),
        curve("AFL, w = 5, κ = ¼", gated(5.0, 0.25)),
        curve("AFL, w = 5, κ = ½", gated(5.0, 0.5)),
        curve("AFL, w = 5, κ = 1", gated(5.0, 1.0)),
    ]


def map_curves(loss: Callable[[MapInfo], MapLoss]) -> tuple[np.ndarray, np.ndarray] | None:
    """|dL/dz| at ``LOGITS`` of a loss of maps, for the rare class of ``EXAMPLE_MAP`` and each element alone in its map.

    Args:
        loss: called with the map's facts; its state is that before the first step.

    Returns:
        For a positive and for a negative, (K,) each. None if the gradient of an element depends on the rest of the map, so
        that the loss has no such curve.

    Raises:
        ValueError: the loss is not defined on such a map.
    """
    module, few = loss(EXAMPLE_MAP).eval(), LOGITS[::20]
    nothing = LOGITS[:0]
    positive = torch.cat([_map_gradient(module, z, nothing) for z in LOGITS.split(1)])
    negative = torch.cat([_map_gradient(module, nothing, z) for z in LOGITS.split(1)])
    # There are many, so that a method that samples negatives leaves some out.
    together = _map_gradient(module, few, LOGITS.repeat(8))
    if not torch.allclose(together, torch.cat([positive[::20], negative.repeat(8)]), rtol=1e-4, atol=1e-6):
        return None
    return positive.numpy(), negative.numpy()


def gradients_in_a_map(loss: Callable[[MapInfo], MapLoss]) -> tuple[np.ndarray, np.ndarray]:
    """Mean |dL/dz| of the elements in each of ``MAP_BINS`` equal parts of p, in one map and before the first step.

    The map has 40 positives, four to an object, whose boxes have an IoU of p, and 4,000 negatives; box terms are worth
    1. Gradients are taken before the division by the number of positives.

    Args:
        loss: called with the map's facts.

    Returns:
        Of positives and of negatives, (MAP_BINS,) each.
    """
    module, count = loss(EXAMPLE_MAP).eval(), len(MAP_POSITIVES)
    size = count * _map_gradient(module, MAP_POSITIVES, MAP_NEGATIVES, whole=True)
    return (
        _mean_by_part(torch.sigmoid(MAP_POSITIVES).numpy(), size[:count].numpy()),
        _mean_by_part(torch.sigmoid(MAP_NEGATIVES).numpy(), size[count:].numpy()),
    )


def _mean_by_part(p: np.ndarray, values: np.ndarray) -> np.ndarray:
    part = np.minimum((p * MAP_BINS).astype(int), MAP_BINS - 1)
    total, number = (np.bincount(part, weights, MAP_BINS) for weights in (values, None))
    return total / number


def _map_gradient(module: nn.Module, positive: Tensor, negative: Tensor, whole: bool = False) -> Tensor:
    """|dL/dz| (P + N,) of the rare class in a map with the given logits of P positives and N negatives; the other class keeps
    its prior. ``whole``: the map of ``gradients_in_a_map`` instead of independent elements."""
    info = EXAMPLE_MAP
    z = torch.cat([positive, negative])
    logits = torch.full(
        (len(z), info.num_classes), float(np.log(info.prior / (1 - info.prior))), dtype=z.dtype
    )
    logits[:, RARE] = z
    logits.requires_grad_()
    index = torch.arange(len(positive))
    target = ClassificationTarget(
        num_classes=info.num_classes,
        image=torch.zeros(len(z), dtype=torch.int64),
        num_images=1,
        positive=index * info.num_classes + RARE,
        overlap=torch.sigmoid(positive) if whole else torch.full((len(index),), EXAMPLE_OVERLAP),
        object=index % (len(index) // 4) if whole else index,
        location_overlap=None if whole else torch.zeros(len(z)),
    )
    one = torch.ones((), dtype=z.dtype)
    value = module(logits, target, len(positive) * one if whole else one, localization=one)
    gradient = torch.zeros_like(logits)
    if value.requires_grad:
        (gradient,) = torch.autograd.grad(value, logits, materialize_grads=True)
    return gradient[:, RARE].abs()
