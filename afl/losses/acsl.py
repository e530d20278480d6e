"""Adaptive class suppression: an object pushes down only the classes for which it is mistaken.

Wang et al., Adaptive Class Suppression Loss for Long-Tail Object Detection, CVPR 2021, eq. 3 and 4.

    w_j = 1    if y_j = 1, or p_j >= xi
    w_j = 0    otherwise

at an object. The weights need no class counts and treat rare and frequent classes alike. Default: xi = 0.7 of the paper. The
paper's element loss is cross-entropy; here it is the head's focal loss.

Anchors, grids and heat maps: ``at_objects`` says which locations belong to an object. ObjectBox's objectness has one class and
keeps plain weights.

Differs from the official code in the background, where that code keeps the negatives of rare classes at 1 % of the samples and those
of common classes at 10 %. Here all background locations keep weight 1: a dense head starts at a probability of 0.01, below any xi, and
would never learn the background.
"""

from __future__ import annotations

import torch
from torch import Tensor

from afl.losses.at_objects import weighed_at_objects
from afl.losses.contract import MapInfo
from afl.losses.target import ClassificationTarget
from afl.losses.weighting import ElementWeights, Weighting


class AdaptiveClassSuppression(Weighting):
    """Keeps the negatives at an object only where their probability is at least a threshold.

    Args:
        info: the map.
        threshold: xi in [0, 1].
    """

    def __init__(self, info: MapInfo, *, threshold: float = 0.7) -> None:
        super().__init__()
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold}, but a probability is between 0 and 1.")
        self.threshold = threshold

    def forward(
        self, logits: Tensor, target: ClassificationTarget, weights: ElementWeights
    ) -> ElementWeights:
        return weighed_at_objects(logits, target, weights, self._factor)

    def _factor(self, z: Tensor, label: Tensor, image: Tensor) -> Tensor:
        return (torch.sigmoid(z) >= self.threshold).to(z.dtype)
