"""Equilibrium margins of LOCE: how hard classes compete depends on how well each is already recognised.

Feng, Zhong & Huang, Exploring Classification Equilibrium in Long-Tailed Object Detection, ICCV 2021, section 3.2.

    s_c      running mean of p_c over the positives of class c: its mean classification score
    delta_ij = ln(s_j / s_i)    added to the logit of class j at an object of class i

Objects of a well recognised class push a class with low scores down less, and its own objects push well recognised classes down more.
No counts are used. In a sigmoid head the shift gives the negatives of class j at an object of class i the weight W_ij = S / (1 - p_j +
S p_j) with S = s_j / s_i (``at_objects``). Defaults: momentum 0.9; s_c starts at the head's prior. The element loss is the head's
focal loss.

Anchors, grids and heat maps: ``at_objects`` says which locations belong to an object. ObjectBox's objectness has one class and
keeps plain weights.

Differs from the paper: sigmoid instead of softmax; the loss alone, without memory-augmented feature sampling, which needs the features
of a second stage; the mean moves once per step over all ranks, and does not count the current step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from afl.losses.at_objects import shifted_cross_entropy, weighed_at_objects
from afl.losses.contract import MapInfo
from afl.losses.maturity import update_running_mean
from afl.losses.target import ClassificationTarget
from afl.losses.weighting import ElementWeights, Weighting, positive_logits


class EquilibriumMargin(Weighting):
    """Weighs the negatives of the other classes at an object by the ratio of mean scores.

    Args:
        info: the map; its ``prior`` is where the mean scores start.
        momentum: in [0, 1), per optimiser step that has a positive of the class.
    """

    score: Tensor
    pending: Tensor

    def __init__(self, info: MapInfo, *, momentum: float = 0.9) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}, but must lie in [0, 1).")
        self.momentum = momentum
        self.register_buffer("score", torch.full((info.num_classes,), info.prior, dtype=torch.float64))
        # Sum of p and number of positives since the last update.
        self.register_buffer("pending", torch.zeros(2, info.num_classes, dtype=torch.float64))

    def forward(
        self, logits: Tensor, target: ClassificationTarget, weights: ElementWeights
    ) -> ElementWeights:
        if self.training:
            p = torch.where(target.is_positive, torch.sigmoid(positive_logits(logits, target)), 0.0)
            seen = torch.stack([p.double(), target.is_positive.double()])
            self.pending.index_add_(1, target.positive_class, seen)
        return weighed_at_objects(logits, target, weights, self._factor)

    def update(self) -> None:
        update_running_mean(self.score, self.pending, self.momentum)

    def statistics(self) -> dict[str, float | Tensor]:
        return {"mean_score": self.score}

    def _factor(self, z: Tensor, label: Tensor, image: Tensor) -> Tensor:
        # A floor far below any trained score, so that no ratio is infinite.
        score = self.score.clamp(min=1e-6)
        return shifted_cross_entropy(z, (score / score[label].unsqueeze(1)).to(z.dtype))
