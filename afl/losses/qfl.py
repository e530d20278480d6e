"""Quality focal loss (Li et al., Generalized Focal Loss, NeurIPS 2020, eq. 3).

    QFL = |y - p|^beta BCE(p, y)        y: IoU of the predicted box on positives, 0 on negatives

The score learns the quality of its box, and the focus is the distance from that quality. Defaults: beta = 2 of the paper
(``gamma`` here), no alpha. Every map computes soft targets this way, so this loss only adds where y comes from, and a chain
of weightings may follow.

Anchor heads: y is the IoU of the box decoded at the positive, without gradient. ObjectBox's objectness already has a soft
target, its SDIoU, and keeps it. Heat maps: a peak has the IoU of the box decoded there; elements under the Gaussian remain
negatives scaled by (1 - Y)^4. Heads without a box at their positives (CornerNet, ExtremeNet) have no y: ``UndefinedPair``.

Differs from the official code: nothing in the loss. The paper's detector also drops the centre-ness from its scores; the
detectors here keep their own decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from afl.losses.classification_loss import ClassificationLoss
from afl.losses.contract import MapInfo
from afl.losses.soft_labels import positive_quality
from afl.losses.target import ClassificationTarget
from afl.losses.weighting import Weighting


class QualityFocalLoss(ClassificationLoss):
    """The loss of a map whose positives learn the quality of their boxes.

    Args:
        info: the map.
        chain: weightings, as in ``ClassificationLoss``.
        gamma: the paper's beta.
        alpha: balance of positives and negatives; negative, as in the paper: off.
    """

    def __init__(
        self,
        info: MapInfo,
        *,
        chain: Mapping[str, Callable[[MapInfo], Weighting]] | None = None,
        gamma: float = 2.0,
        alpha: float = -1.0,
    ) -> None:
        super().__init__(info, chain=chain, gamma=gamma, alpha=alpha)
        self.uses_overlap = True

    def compute(
        self, logits: Tensor, target: ClassificationTarget, normalizer: Tensor, localization: Tensor | None
    ) -> Tensor:
        """The loss with the IoU as the positives' target.

        Raises:
            UndefinedPair: if the map's positives have neither a soft target nor a box.
        """
        soft = replace(target, value=positive_quality(target, "qfl", self.info.name))
        return super().compute(logits, soft, normalizer, localization)
