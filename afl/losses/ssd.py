"""Hard negative mining of SSD (Liu et al., ECCV 2016, section 2.2): three negatives for each positive.

    W = 1 for positives and for the 3 N negatives of an image with the largest loss, 0 for all others

N is the number of positives of that image. Defaults: ratio 3 (section 2.2), and at least 64 negatives per image, half of OHEM's 128
samples. A heat map has a handful of peaks among tens of thousands of elements, and three negatives per peak would leave most of the
map untrained. Pair it with cross-entropy: gamma 0, alpha off.

Anchors and grids: a sample is a location. All classes of a positive location are learnt. A negative location is as hard as its worst
class, whose loss -ln(1 - max p) replaces the softmax head's -ln p_background. Heat maps: a sample is an element, ranked by its loss
with the scale (1 - Y)^4; peaks always stay. On a map without negative locations nothing is dropped.

Differs from the official code: there an image without objects has no negatives, here it has the minimum (with a minimum of 0 it is the
official rule); the divisor is the detector's number of positives, which is SSD's as well.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from afl.losses.contract import MapInfo
from afl.losses.sampling import (
    check_ratio,
    hardest,
    keep_hardest_elements,
    largest_negative_losses,
    negatives_wanted,
    positive_locations,
)
from afl.losses.target import ClassificationTarget
from afl.losses.weighting import ElementWeights, Weighting


class HardNegativeMining(Weighting):
    """Keeps all positives, and of the negatives of every image the hardest.

    Args:
        info: the map; ``dense_positives`` tells anchors and grids from heat maps.
        ratio: negatives for each positive of the image.
        minimum: least number of negatives in an image.
    """

    def __init__(self, info: MapInfo, *, ratio: float = 3.0, minimum: int = 64) -> None:
        super().__init__()
        check_ratio(ratio, minimum)
        self.by_location, self.ratio, self.minimum = info.dense_positives, ratio, minimum

    def forward(
        self, logits: Tensor, target: ClassificationTarget, weights: ElementWeights
    ) -> ElementWeights:
        wanted = negatives_wanted(target, self.ratio, self.minimum)
        if not self.by_location:
            most = target.num_images * self.minimum + math.ceil(self.ratio * len(target.positive))
            return keep_hardest_elements(logits, target, weights, wanted, most)
        positive = positive_locations(target)
        hardness = largest_negative_losses(logits, target, weights).masked_fill(positive, -torch.inf)
        kept = hardest(hardness, target.image, wanted) | positive
        return weights.times(negative_location=kept.to(torch.float32))
