"""EFL: focal loss with a focusing exponent for each class.

Li et al., Equalized Focal Loss for Dense Long-Tailed Object Detection, CVPR 2022.

    g_j     = min(1, sum of positives' |gradient| / sum of negatives', over all steps)    of class j
    gamma_j = gamma_b + s (1 - g_j)
    EFL     = alpha_t (gamma_j / gamma_b) (1 - p_t)^gamma_j (-ln p_t)    on positives and negatives of class j

The larger exponent mutes the elements that a rare class already gets right, mostly its many easy negatives. The factor in
front restores the loss of its hard elements. Defaults of the official code: s = 8, gamma_b = 2, alpha = 0.25. Before the
first step g_j is 1, which is focal loss. gamma_b and alpha are the ``gamma`` and the ``alpha`` of the loss.

Anchor heads: as published. Heat maps: the same; the (1 - Y)^4 of negatives is part of the loss and of the sums.

Differs from the official code, which collects the gradients of the last layer's outputs by a hook after the division by the
normaliser. Here they are computed in closed form before the division, so a step counts in proportion to its positives. Sums
are reduced over ranks once per optimiser step. The loss is computed from logits, not as ln p_t.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from afl.losses.contract import MapInfo
from afl.losses.gradient import computing_type
from afl.losses.gradient_ratio import GradientRatio
from afl.losses.target import ClassificationTarget
from afl.losses.weighting import ElementWeights, Weighting


class EqualizedFocus(Weighting):
    """Gives each class its focusing exponent, and its loss the factor gamma_j / gamma_b.

    Put it after the links whose weights its sums must include; its own weights are included. In training it costs a second
    pass over the logits.

    Args:
        info: the map.
        scale: s, the largest increase of an exponent, not negative.
    """

    def __init__(self, info: MapInfo, *, scale: float = 8.0) -> None:
        super().__init__()
        if scale < 0:
            raise ValueError(f"scale is {scale}, but an exponent must not fall below that of focal loss.")
        self.scale = scale
        self.ratio = GradientRatio(info.num_classes, initial=1.0)

    def forward(
        self, logits: Tensor, target: ClassificationTarget, weights: ElementWeights
    ) -> ElementWeights:
        if isinstance(weights.gamma, Tensor) or weights.gamma <= 0:
            raise ValueError(
                f"efl multiplies by gamma_j / gamma: its loss needs one positive gamma, not {weights.gamma}."
            )
        gamma = (weights.gamma + self._growth()).to(computing_type(logits.dtype))
        factor = gamma / weights.gamma
        weights = replace(weights, gamma=gamma).times(
            positive=factor[target.positive_class], negative_class=factor
        )
        if self.training:
            self.ratio.observe(logits, target, weights)
        return weights

    def update(self) -> None:
        self.ratio.update()

    def statistics(self) -> dict[str, float | Tensor]:
        growth = self._growth()
        return {"gamma_growth_min": growth.min(), "gamma_growth_max": growth.max()}

    def _growth(self) -> Tensor:
        """(C,) float64 s (1 - g_j)."""
        return self.scale * (1.0 - torch.clamp(self.ratio.value, 0.0, 1.0))
