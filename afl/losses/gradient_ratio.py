"""Ratio of a class's positive to its negative gradients since training began."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from afl.losses.distributed import all_reduce_sum
from afl.losses.primitive import gradient_mass
from afl.losses.target import ClassificationTarget
from afl.losses.weighting import ElementWeights


class GradientRatio(nn.Module):
    """Ratio per class of the summed sizes of positives' and negatives' gradients, over all steps so far.

        g_j = sum of |dL/dz_j| over positives / sum of |dL/dz_j| over negatives

    Gradients are those of the weighted loss, before gate and normaliser; a heat map's (1 - Y)^4 is in them,
    and a soft positive's gradient counts as a positive one. The sums never decay.

    Args:
        num_classes: C.
        initial: the ratio of a class that has had no negative gradient yet.
    """

    running: Tensor
    pending: Tensor

    def __init__(self, num_classes: int, initial: float) -> None:
        super().__init__()
        self.initial = initial
        # Rows: positives, negatives.
        self.register_buffer("running", torch.zeros(2, num_classes, dtype=torch.float64))
        self.register_buffer("pending", torch.zeros(2, num_classes, dtype=torch.float64))

    @property
    def value(self) -> Tensor:
        """(C,) float64 g_j."""
        positive, negative = self.running
        ratio = positive / negative.clamp(min=torch.finfo(negative.dtype).tiny)
        return torch.where(negative > 0, ratio, self.initial)

    def observe(self, logits: Tensor, target: ClassificationTarget, weights: ElementWeights) -> None:
        """Adds a map's gradients, as they are under ``weights``; costs a pass over the logits."""
        self.pending += torch.stack(gradient_mass(logits, target, weights))

    def update(self) -> None:
        """Add the observations of all ranks since the last call."""
        self.running += all_reduce_sum(self.pending)
        self.pending.zero_()
