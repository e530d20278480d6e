"""Control for class-weighted losses: one factor on all positives, the mean of the class weights.

    s on positives,    s = sum over classes of n_c w_c / sum of n_c

Class weights have two effects: they shift weight between classes, and from negatives to positives. This link has only the
second effect, so compare a gain of class weights with it. It is the control for weights that give the most
frequent class 1 (``cbl``, ``cbfl``). Weights with a mean of 1 over instances, as in ``afl``, give s = 1: their control is
focal loss itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from afl.losses.class_weights import Normalization, class_balanced_weights
from afl.losses.contract import MapInfo
from afl.losses.target import ClassificationTarget
from afl.losses.weighting import ElementWeights, Weighting


class PositiveScale(Weighting):
    """A factor s on all positives, 1 + (s - 1) y on soft ones: the mean of class weights over instances.

    Args:
        info: the map; its ``instances_per_class`` are counted.
        beta, normalize, cap: of the class weights to compare with.
    """

    scale: Tensor

    def __init__(
        self,
        info: MapInfo,
        *,
        beta: float = 0.999,
        normalize: Normalization = "head",
        cap: float | None = 5.0,
    ) -> None:
        super().__init__()
        counts = info.instances_per_class.to(torch.float32)
        weight = class_balanced_weights(counts, beta, normalize, cap)
        self.register_buffer(
            "scale", (counts * weight).sum() / counts.sum() if counts.sum() > 0 else weight.mean()
        )

    def forward(
        self, logits: Tensor, target: ClassificationTarget, weights: ElementWeights
    ) -> ElementWeights:
        value = (
            torch.ones_like(target.positive, dtype=self.scale.dtype) if target.value is None else target.value
        )
        return weights.times(positive=1.0 + (self.scale - 1.0) * value)

    def statistics(self) -> dict[str, float | Tensor]:
        return {"scale": self.scale}
