"""Class-balanced weights by the effective number of samples (Cui et al., CVPR 2019), on positives only.

    E_n = (1 - beta^n) / (1 - beta)        effective number of n instances, eq. 2
    w_c = 1 / E_{n_c}, normalised; docs/losses.md gives it with the normalisation and cap of AFL

Cui et al. weight the samples of a classifier. A background location of a detector has no class, so a choice is needed: here
the weight multiplies the positive elements of a class, and negatives keep weight 1.

Defaults: beta = 0.999, from the official scripts for ImageNet and iNaturalist. The cap of 5 is ours, because 1 / E_n spans
three orders of magnitude on LVIS. The normalisation is ours as well: in ``cbl`` and ``cbfl`` the most frequent class has
weight 1; in ``afl`` and ``cbfl_instances`` the mean over instances is 1, which a search selected (results/protocol.md).

On anchors and grids the weight applies to the positives of class c, on heat maps to the peaks of its map. A map of
objectness has one class and therefore weight 1.

Differs from the official code, where the weight of a sample's class multiplies all C logits of that sample, replaces
alpha_t, and weights sum to C (``normalize: classes``).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from afl.losses.contract import MapInfo
from afl.losses.target import ClassificationTarget
from afl.losses.weighting import ElementWeights, StepCounting

Normalization = Literal["head", "instances", "classes"]


def class_balanced_weights(
    instances_per_class: Tensor,
    beta: float = 0.999,
    normalize: Normalization = "head",
    cap: float | None = None,
) -> Tensor:
    """Weights of classes by their effective number of instances (Cui et al. 2019, eq. 2 and section 3).

    Args:
        instances_per_class: (C,) training instances; a class without instances is weighted as if it had one.
        beta: in [0, 1); 0 gives all classes the same weight, values near 1 approach inverse frequency.
        normalize: ``head``: the most frequent class has weight 1; ``instances``: the mean over instances is 1;
            ``classes``: the mean over classes is 1, so the weights sum to C as in Cui et al.
        cap: largest weight, at least 1; a mean of 1 is kept under the cap. None: no cap.

    Returns:
        (C,) float32 weights on the device of the counts.

    Raises:
        ValueError: if an argument is out of its range.
    """
    counts = torch.as_tensor(instances_per_class).to(torch.float64)
    if counts.ndim != 1 or not counts.numel() or not bool(torch.isfinite(counts).all() & (counts >= 0).all()):
        raise ValueError(
            "instances_per_class must be a vector with one finite, non-negative count per class."
        )
    if not 0 <= beta < 1:
        raise ValueError(f"beta is {beta}, but must lie in [0, 1).")
    if cap is not None and cap < 1:
        raise ValueError(f"cap is {cap}, but a largest weight below 1 leaves no weight for any class.")
    n = counts.clamp(min=1)
    # 1 - beta^n without the cancellation that loses digits for beta near 1.
    weight = (1 - beta) / -torch.expm1(n * torch.log(torch.tensor(beta, dtype=torch.float64)))
    limit = torch.inf if cap is None else cap
    if normalize == "head":
        weight = (weight / weight[counts.argmax()]).clamp(max=limit)
    elif normalize == "instances":
        weight = _with_mean_one(weight, counts if counts.sum() > 0 else n, limit)
    elif normalize == "classes":
        weight = _with_mean_one(weight, torch.ones_like(counts), limit)
    else:
        raise ValueError(f"normalize is {normalize!r}, but must be 'head', 'instances' or 'classes'.")
    return weight.to(torch.float32)


def _with_mean_one(weight: Tensor, mass: Tensor, limit: float) -> Tensor:
    """min(s weight, limit) with the factor s that makes its mean under ``mass`` equal to 1.

    Capping lowers the mean, and raising the other weights to repair it may lift more of them over the limit. Each round
    fixes the weights at the limit, so there are at most as many rounds as classes.
    """
    capped = torch.zeros_like(weight, dtype=torch.bool)
    scaled = weight
    for _ in range(weight.numel()):
        free = (mass * weight)[~capped].sum()
        if free <= 0:
            break
        spent = limit * mass[capped].sum() if capped.any() else 0.0
        scaled = weight * ((mass.sum() - spent) / free)
        over = (scaled > limit) & ~capped
        if not over.any():
            break
        capped |= over
    return torch.where(capped, limit, scaled).clamp(max=limit)


def weights_of_positives(class_weight: Tensor, target: ClassificationTarget) -> Tensor:
    """(P,) w_c of each hard positive, 1 + (w_c - 1) y of each soft one; ``class_weight`` is (C,)."""
    weight = class_weight[target.positive_class]
    if target.value is None:
        return weight
    return torch.lerp(torch.ones_like(weight), weight, target.value.to(weight.dtype))


class ClassWeights(StepCounting):
    """Class-balanced weights on the positives: w_c on a hard positive, 1 + (w_c - 1) y on a soft one.

    Args:
        info: the map; its ``instances_per_class`` are counted.
        beta, normalize, cap: see ``class_balanced_weights``.
        fade_steps: number of optimiser steps over which the weights fade in, as w_c^(t / fade_steps) for step t: the
            deferred re-weighting of Cao et al. (NeurIPS 2019) without its jump. 0 applies them from the start.
    """

    weight: Tensor

    def __init__(
        self,
        info: MapInfo,
        *,
        beta: float = 0.999,
        normalize: Normalization = "head",
        cap: float | None = 5.0,
        fade_steps: int = 0,
    ) -> None:
        super().__init__()
        if fade_steps < 0:
            raise ValueError(f"fade_steps is {fade_steps}, but a number of steps must not be negative.")
        self.fade_steps = fade_steps
        self.register_buffer("weight", class_balanced_weights(info.instances_per_class, beta, normalize, cap))

    def forward(
        self, logits: Tensor, target: ClassificationTarget, weights: ElementWeights
    ) -> ElementWeights:
        return weights.times(positive=weights_of_positives(self._current(), target))

    def statistics(self) -> dict[str, float | Tensor]:
        weight = self._current()
        return {"weight_min": weight.min(), "weight_max": weight.max()}

    def _current(self) -> Tensor:
        if self.fade_steps == 0:
            return self.weight
        return self.weight ** (self.steps / self.fade_steps).clamp(max=1.0)
