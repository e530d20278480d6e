"""GHM-C: gradients harmonised by their density.

Li, Liu & Wang, Gradient Harmonized Single-stage Detector, AAAI 2019.

    g_i     = |p_i - y_i|                  size of cross-entropy's gradient
    GD(g)   = M R_b, b the bin of g        gradient density: R_b elements in it, of M equal bins of [0, 1]
    L_GHM-C = (1 / N) sum_i beta_i CE_i    beta_i = N / GD(g_i), N the number of elements
    S_b    <- m S_b + (1 - m) R_b          running mean that replaces R_b

Every bin has the same total weight, however many elements it holds. This lowers the weight of the many easy negatives, and
of outliers where they gather at g near 1. Defaults: M = 30 and m = 0.75 of the official COCO configuration. The element
loss is cross-entropy without alpha (``gamma: 0``, ``alpha: -1``).

Normalisation. The official code replaces M by the number n of non-empty bins, and N cancels: L = sum_i CE_i / (n S_b(i)), a
mean over bins of mean losses, as large as the loss of one element. Here every loss is divided by its detector's normaliser,
the mean over ranks of the number of positives, which counts as at least 1 in all ranks together. The weight therefore
contains that number,

    W_i = max(P, 1) / (n S_b(i)),    P, R and S summed over ranks

and after the division the loss is exactly the official one, for any number of processes.

Anchor heads: as published. A soft positive (ObjectBox's objectness) has g = |p - y|. Nothing is published on heat maps; here
g = 1 - p at peaks and g = p elsewhere, and a negative under a Gaussian counts (1 - Y)^4 in the histogram, as in the loss.

On LongTail Shapes it stays far behind focal loss; results/single_runs.md has the figures and what they show of the reason.

Differs from the official code: the running mean of a bin starts at its first count, where a buffer of zeros made the first
weights up to four times too large. As in the official code, an empty bin keeps its mean. The official configuration also
clips the norm of the gradient at 35; here the trainer's ``clip_norm`` does that.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

import torch
from torch import Tensor

from afl.losses.contract import MapInfo
from afl.losses.distributed import all_reduce_sum
from afl.losses.fused import uses_triton
from afl.losses.gradient import computing_type
from afl.losses.negatives import negative_blocks
from afl.losses.primitive import scaled_negatives
from afl.losses.target import ClassificationTarget
from afl.losses.weighting import ElementWeights, Weighting, positive_hardness

# Under these a plain negative's factor in the dense pass is 1.
_CROSS_ENTROPY = ElementWeights(alpha=-1.0, gamma=0.0)


class GradientHarmonizing(Weighting):
    """Weighs every element by the inverse density of its gradient's size.

    The current batch counts, so the first step is already harmonised. It reads the logits once more and,
    under torch.distributed, needs a small all-reduce in ``forward``, which all ranks must call equally often.

    Args:
        info: the map.
        bins: M, from 1 to 256.
        momentum: m in [0, 1) of the running histogram, per optimiser step.
    """

    running: Tensor
    pending: Tensor
    passes: Tensor

    def __init__(self, info: MapInfo, *, bins: int = 30, momentum: float = 0.75) -> None:
        super().__init__()
        if not 1 <= bins <= 256:
            raise ValueError(f"bins is {bins}, but must lie between 1 and 256.")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}, but must lie in [0, 1).")
        self.bins, self.momentum = bins, momentum
        self.register_buffer("running", torch.zeros(bins, dtype=torch.float64))
        # Sum of the histograms seen since the last update, and their number.
        self.register_buffer("pending", torch.zeros(bins, dtype=torch.float64))
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(
        self, logits: Tensor, target: ClassificationTarget, weights: ElementWeights
    ) -> ElementWeights:
        at_positives = self._bin(positive_hardness(logits, target)).long()
        seen = self._histogram(logits, target, at_positives)
        counts = torch.cat([seen, target.num_positives().reshape(1)])
        if self.training:
            # Here and not in ``update``: the weights of this very step depend on all ranks.
            counts = all_reduce_sum(counts)
            seen = counts[: self.bins]
            self.pending += seen
            self.passes += 1
            density = self._moved(seen)
        else:
            density = torch.where(self.running > 0, self.running, seen)
        filled = seen > 0
        share = counts[self.bins].clamp(min=1) / filled.sum().clamp(min=1)
        weight = torch.where(filled, share / torch.where(filled, density, 1.0), 0.0)
        weight = weight.to(computing_type(logits.dtype))
        return replace(weights.times(positive=weight[at_positives]), negative_bin=weight)

    def update(self) -> None:
        self.running.copy_(self._moved(self.pending / self.passes.clamp(min=1)))
        self.pending.zero_()
        self.passes.zero_()

    def statistics(self) -> dict[str, float | Tensor]:
        total = self.running.sum().clamp(min=1)
        return {"easiest_bin": self.running[0] / total, "hardest_bin": self.running[-1] / total}

    def _moved(self, seen: Tensor) -> Tensor:
        """The running histogram after ``seen``; bins without an element stay."""
        mean = torch.where(self.running > 0, torch.lerp(seen, self.running, self.momentum), seen)
        return torch.where(seen > 0, mean, self.running)

    def _bin(self, g: Tensor) -> Tensor:
        """Number of the bin, as a float tensor of g's shape; 0 for NaN, whose loss is NaN in any bin."""
        return (g * self.bins).clamp_(max=self.bins - 1).floor_().nan_to_num_(nan=0.0)

    def _histogram(self, logits: Tensor, target: ClassificationTarget, at_positives: Tensor) -> Tensor:
        """The mass (bins,) float64 of the elements in each bin."""
        seen = torch.zeros(self.bins, dtype=torch.float64, device=logits.device)
        seen.index_add_(0, at_positives, target.is_positive.to(seen.dtype))
        if uses_triton(logits):
            kernels = import_module("afl.losses.triton_histogram")
            seen += kernels.sizes_of_negatives(logits, target, self.bins)
        else:
            self._count_in_blocks(seen, logits, target)
        scaled = scaled_negatives(logits, target, _CROSS_ENTROPY)
        if scaled is not None:
            mass = torch.where(scaled.valid, scaled.weight, 0.0).to(seen.dtype)
            # A negative's cross-entropy has the gradient g.
            seen.index_add_(0, self._bin(scaled.gradient).long(), mass)
        return seen

    def _count_in_blocks(self, seen: Tensor, logits: Tensor, target: ClassificationTarget) -> None:
        """Add the number of plain negatives in each bin to ``seen``."""
        for block in negative_blocks(logits, target, _CROSS_ENTROPY, 1.0):
            number = self._bin(block.g)
            # Exceptions have factor 0 and become -1, which is outside all bins.
            counted = number.add_(1.0).mul_(block.factor).sub_(1.0)
            seen += torch.histc(counted, bins=self.bins, min=0, max=self.bins)
