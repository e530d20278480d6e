"""Class weights by a power of the frequency, on positives only.

    w_c = min((max n / n_c)^power, cap)

The power 1/2 is the square-root weighting of Mahajan et al., Exploring the Limits of Weakly Supervised Pretraining, ECCV 2018,
section 2.2 (as weights instead of sampling); the power 1 is inverse frequency. The most frequent class has weight 1. Default: power 1/2,
and a cap of 5 as in ``class_weights``. A class without instances counts as if it had one. The weight multiplies positives; a soft
positive y has 1 + (w_c - 1) y. Anchors and grids: all positives of class c. Heat maps: the peaks of its map. A map of one class has
weight 1.
"""

from __future__ import annotations

import math

from torch import Tensor

from afl.losses.class_weights import weights_of_positives
from afl.losses.contract import MapInfo
from afl.losses.target import ClassificationTarget
from afl.losses.weighting import ElementWeights, Weighting


class FrequencyWeights(Weighting):
    """Weighs positives by a power of the inverse frequency of their class.

    Args:
        info: the map; its ``instances_per_class`` are counted.
        power: of the inverse frequency, not negative.
        cap: largest weight, at least 1; None: no cap.
    """

    weight: Tensor

    def __init__(self, info: MapInfo, *, power: float = 0.5, cap: float | None = 5.0) -> None:
        super().__init__()
        if power < 0 or (cap is not None and cap < 1):
            raise ValueError(f"power is {power} and cap {cap}: not negative and at least 1 are needed.")
        n = info.instances_per_class.double().clamp(min=1.0)
        self.register_buffer(
            "weight", ((n.max() / n) ** power).clamp(max=math.inf if cap is None else cap).float()
        )

    def forward(
        self, logits: Tensor, target: ClassificationTarget, weights: ElementWeights
    ) -> ElementWeights:
        return weights.times(positive=weights_of_positives(self.weight, target))

    def statistics(self) -> dict[str, float | Tensor]:
        return {"weight_min": self.weight.min(), "weight_max": self.weight.max()}
