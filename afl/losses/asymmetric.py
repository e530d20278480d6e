"""Asymmetric focusing: positives and negatives have separate exponents.

Ridnik et al., Asymmetric Loss for Multi-Label Classification, ICCV 2021, eq. 4.

    L+ = (1 - p)^gamma+ (-ln p),    L- = p^gamma- (-ln(1 - p))

Easy negatives are muted without muting the positives of rare classes. Defaults of the paper: gamma+ = 0 and gamma- = 4, which
is the ``gamma`` of the loss; no alpha (``alpha: -1``). Anchors and grids: as published. Soft positives (objectness): g = |p - y|
with the exponent gamma+. Heat maps: the same, negatives with their (1 - Y)^4.

Differs from the paper: no probability shift m. It sets the loss of every negative with p < m = 0.05 to zero, and the negatives
of a dense head start at 0.01, so such a head would learn nothing from its background.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from afl.losses.contract import MapInfo
from afl.losses.target import ClassificationTarget
from afl.losses.weighting import ElementWeights, Weighting


class AsymmetricFocus(Weighting):
    """Gives the positives a separate focusing exponent; negatives keep the ``gamma`` of the loss.

    Args:
        info: the map.
        positive_gamma: gamma+, not negative.
    """

    def __init__(self, info: MapInfo, *, positive_gamma: float = 0.0) -> None:
        super().__init__()
        if positive_gamma < 0:
            raise ValueError(f"positive_gamma is {positive_gamma}, but an exponent must not be negative.")
        self.positive_gamma = float(positive_gamma)

    def forward(
        self, logits: Tensor, target: ClassificationTarget, weights: ElementWeights
    ) -> ElementWeights:
        return replace(weights, positive_gamma=self.positive_gamma)
