"""Class-balanced weights that take effect as the first classes are learnt.

A form of Adaptive Focal Loss; like the others it is a *reconstruction*, because the paper's formula is not public.

    w_c^lambda,   lambda = 1 - mean of i_c over the most mature quarter of the classes
    i_c = clip((ghat_c - h) / (ghat_0 - h), 0, 1)      immaturity of class c, ghat_c: running mean of g over its positives

A fresh head has i_c = 1 for every class, so lambda = 0: focal loss. Once the mean g of each class in the most mature quarter
is below h, lambda = 1: class-balanced focal loss. The frequent classes usually mature first, so the tail gains weight once
the shared features exist, and does not have to be learnt before. A mean over all positives or all classes can stay high for
the whole training. This is deferred re-weighting (Cao et al., NeurIPS 2019) without a schedule.

The quarter is taken of the classes with training instances, rounded up. The defaults, a momentum of 0.99 and h = 1/2, are
ours. The weights are those of ``class_weights`` and apply to positives only. Anchors, grids and heat maps are treated alike.
A map with one class has weight 1 for every lambda.
"""

from __future__ import annotations

from torch import Tensor

from afl.losses.class_weights import Normalization, class_balanced_weights, weights_of_positives
from afl.losses.contract import MapInfo
from afl.losses.maturity import Maturity
from afl.losses.target import ClassificationTarget
from afl.losses.weighting import ElementWeights, Weighting


class TemperedClassWeights(Weighting):
    """Class-balanced weights to the power lambda, which rises from 0 to 1 with the most mature quarter of the classes.

    Args:
        info: the map; its ``instances_per_class`` are counted and ``prior`` is where the running means start.
        beta, normalize, cap: see ``class_balanced_weights``.
        momentum: of each class's running mean, per optimiser step that has a positive of the class.
        threshold: h, the mean g at which a class is mature.
    """

    weight: Tensor

    def __init__(
        self,
        info: MapInfo,
        *,
        beta: float = 0.999,
        normalize: Normalization = "head",
        cap: float | None = 5.0,
        momentum: float = 0.99,
        threshold: float = 0.5,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", class_balanced_weights(info.instances_per_class, beta, normalize, cap))
        self.maturity = Maturity(
            prior=info.prior, threshold=threshold, momentum=momentum, groups=info.num_classes
        )
        self.quarter = max(1, -(-int((info.instances_per_class > 0).sum()) // 4))

    @property
    def power(self) -> Tensor:
        """lambda, scalar in [0, 1]."""
        immaturity = self.maturity.immaturity.reshape(-1)
        return 1.0 - immaturity.topk(self.quarter, largest=False).values.mean()

    def forward(
        self, logits: Tensor, target: ClassificationTarget, weights: ElementWeights
    ) -> ElementWeights:
        if self.training:
            self.maturity.observe_map(logits, target)
        return weights.times(positive=weights_of_positives(self.weight**self.power, target))

    def update(self) -> None:
        self.maturity.update()

    def statistics(self) -> dict[str, float | Tensor]:
        return {"ghat": self.maturity.ghat, "lambda": self.power}
