"""Varifocal loss (Zhang et al., VarifocalNet, CVPR 2021, eq. 2).

    VFL(p, q) = q BCE(p, q)                    q > 0: IoU of the predicted box on positives
                alpha p^gamma (-ln(1 - p))     q = 0: negatives

Unlike in focal loss, positives are not focused but weighted by their quality, so well-localised positives dominate.
Defaults: alpha = 0.75, gamma = 2 of the paper. alpha is the weight of negatives, not focal loss's balance.

Anchor heads: q is the IoU of the box decoded at the positive, without gradient; if that box misses its object (q = 0), the
element is a negative, as in the official code. ObjectBox's objectness already has a soft target, its SDIoU, and keeps it.
Heat maps: a peak has the IoU of the box decoded there; with q = 0 it takes no part, because as a negative it would have the
weight (1 - Y)^4 = 0. Heads without a box at their positives (CornerNet, ExtremeNet) have no q: ``UndefinedPair``.

Only negatives are focused, which a chain of weightings cannot express, so this loss has no chain: positives have an exponent
of 0 and the weight q.

Differs from the official code: nothing in the loss; the detectors here keep their own decoding.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from afl.losses.contract import MapInfo, MapLoss
from afl.losses.gradient import computing_type
from afl.losses.primitive import weighted_loss
from afl.losses.soft_labels import positive_quality
from afl.losses.target import PADDING, ClassificationTarget
from afl.losses.weighting import ElementWeights


class VarifocalLoss(MapLoss):
    """The loss of a map whose positives learn the quality of their boxes, weighted by it.

    Args:
        info: the map.
        alpha: weight of negatives, not negative.
        gamma: focusing exponent of negatives, not negative.
    """

    uses_overlap = True

    def __init__(self, info: MapInfo, *, alpha: float = 0.75, gamma: float = 2.0) -> None:
        super().__init__(info)
        if alpha < 0 or gamma < 0:
            raise ValueError(f"alpha is {alpha} and gamma {gamma}, but neither must be negative.")
        self.alpha, self.gamma = float(alpha), float(gamma)

    def compute(
        self, logits: Tensor, target: ClassificationTarget, normalizer: Tensor, localization: Tensor | None
    ) -> Tensor:
        """The loss.

        Raises:
            UndefinedPair: if the map's positives have neither a soft target nor a box.
        """
        quality = positive_quality(target, "vfl", self.info.name)
        good = target.is_positive & (quality > 0)
        # 0 first, because the values at padding are arbitrary and would reach the gradient.
        q = torch.where(good, quality, 0.0).to(computing_type(logits.dtype))
        # On heat maps, positives with q = 0 stay in the list, so that they are not negatives.
        listed = torch.where(good, target.positive, PADDING) if self.info.dense_positives else target.positive
        return weighted_loss(
            logits,
            replace(target, positive=listed, value=q),
            ElementWeights(
                alpha=-1.0,
                gamma=self.gamma,
                positive_gamma=0.0,
                positive=q,
                negative_class=q.new_full((self.info.num_classes,), self.alpha),
            ),
            normalizer,
        )
