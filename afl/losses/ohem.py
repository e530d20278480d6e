"""Online hard example mining (Shrivastava et al., CVPR 2016, section 4): only the hardest samples are trained on.

    W = 1 for the B samples of an image with the largest loss, 0 for all others

The paper ranks foreground and background regions together by the current network's loss, without a ratio between them. Default:
size = B = 128, the paper's mini-batch (its code takes 64 from each of two images). Pair it with cross-entropy: gamma 0, alpha off.

Anchors and grids: a sample is a location, and its loss is the sum over classes of the losses of its elements; an easy positive is
dropped like any easy sample. Heat maps: a sample is an element, and its loss includes the scale (1 - Y)^4 of negatives; B negatives
are kept in addition to all peaks, because there are too few peaks to lose any.

Differs from the official code: overlapping samples are not suppressed before the choice, because a classification loss sees no boxes;
the box loss is neither ranked nor mined; the sum is divided by the detector's normaliser, as for every loss, and not by B.
"""

from __future__ import annotations

import torch
from torch import Tensor

from afl.losses.contract import MapInfo
from afl.losses.sampling import hardest, keep_hardest_elements, location_losses
from afl.losses.target import ClassificationTarget
from afl.losses.weighting import ElementWeights, Weighting


class OnlineHardExampleMining(Weighting):
    """Keeps the ``size`` hardest samples of every image, ranked by the loss under the links before it.

    Args:
        info: the map; ``dense_positives`` tells anchors and grids from heat maps.
        size: B, samples per image, at least 1.
    """

    def __init__(self, info: MapInfo, *, size: int = 128) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"size is {size}, but at least one sample of an image has to be learnt.")
        self.by_location, self.size = info.dense_positives, size

    def forward(
        self, logits: Tensor, target: ClassificationTarget, weights: ElementWeights
    ) -> ElementWeights:
        quota = torch.full((target.num_images,), self.size, device=logits.device)
        if not self.by_location:
            return keep_hardest_elements(logits, target, weights, quota, target.num_images * self.size)
        kept = hardest(location_losses(logits, target, weights), target.image, quota).to(torch.float32)
        if not kept.numel():
            return weights
        return weights.times(positive=kept[target.positive_location], negative_location=kept)
