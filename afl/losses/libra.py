"""IoU-balanced sampling of Libra R-CNN (Pang et al., CVPR 2019, 3.1): negatives of all degrees of overlap.

Drawn at random, nearly all negatives are far from every object, while most hard ones overlap one. So the range of overlap is
divided into K bins, and each contributes the same number of negatives (eq. 2):

    W = 1 with probability p_k = (N / K) / M_k, else 0

where N negatives are wanted in an image that has M_k candidates in bin k.

If a bin has fewer candidates than N / K, the missing negatives are drawn evenly from the other bins, as in the official
code. Positives are always kept. Defaults: K = 3; N = 3 for each positive and at least 384, the official 512 samples of an
image with a quarter of positives; bins over IoU in [0, 0.4), the range of RetinaNet's negatives. Pair it with cross-entropy:
gamma 0, alpha off.

A sample is a location with all its classes, as in the paper a region with all its classes. Anchors are binned by their
largest IoU with any object. Grids have no IoU; the substitute is the location's largest probability relative to the largest
of the image's negatives, in bins over [0, 1]: like the IoU it measures how much a negative resembles an object, and high bins
are sparse. Heat maps have no IoU either; the substitute is the height of the tallest Gaussian of any class at the location, Y
= 1 - negative_scale^(1/4): (0, 1/3], (1/3, 2/3], (2/3, 1), and the floor Y = 0 as one more bin. The scale still multiplies the
loss of the class whose Gaussian it is, so in the high bins it is mostly the loss of the other classes that remains. At a
peak, all classes are kept.

Single elements are not samples here. The wrong classes *on* an object have no Gaussian: as elements they would fall to the
floor, where one in fifty is drawn, and the loss would hardly separate classes (results/single_runs.md).

Differs from the official code: each negative is drawn independently with p_k, so N is met on average; the bins' upper end is
a constant and not the largest overlap of the batch including positives; the floor takes part in all steps and not only from
the second on; the divisor is the detector's normaliser. The draws depend only on the optimiser step and the position in the
image. There is no generator, so a run resumes exactly, and two processes draw the same as one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from afl.losses.contract import MapInfo
from afl.losses.draws import uniform
from afl.losses.sampling import (
    CROSS_ENTROPY,
    check_ratio,
    largest_negative_losses,
    negatives_wanted,
    positive_locations,
)
from afl.losses.target import ClassificationTarget
from afl.losses.weighting import ElementWeights, StepCounting

# CornerNet's beta (eq. 1): a negative at height Y counts (1 - Y)^4.
_PENALTY_POWER = 4


class IouBalancedSampling(StepCounting):
    """Keeps all positives, and negatives drawn in equal parts from bins of their closeness to objects.

    Args:
        info: the map; ``dense_positives`` tells anchors and grids from heat maps.
        ratio: negatives for each positive of the image, not negative.
        minimum: least number of negatives in an image, not negative.
        bins: K, at least 1.
        max_overlap: IoU at which negatives end, in (0, 1]; anchors above it fall into the last bin.
    """

    uses_overlap = True

    def __init__(
        self,
        info: MapInfo,
        *,
        ratio: float = 3.0,
        minimum: int = 384,
        bins: int = 3,
        max_overlap: float = 0.4,
    ) -> None:
        super().__init__()
        check_ratio(ratio, minimum)
        if bins < 1 or not 0 < max_overlap <= 1:
            raise ValueError(
                f"bins is {bins} and max_overlap {max_overlap}: at least 1 and in (0, 1] are needed."
            )
        self.by_location, self.ratio, self.minimum = info.dense_positives, ratio, minimum
        self.bins, self.max_overlap = bins, max_overlap

    def forward(
        self, logits: Tensor, target: ClassificationTarget, weights: ElementWeights
    ) -> ElementWeights:
        positive = positive_locations(target)
        candidate = ~positive if target.ignored is None else ~positive & ~target.ignored
        level, levels = self._level(logits, target, candidate)
        group = target.image * levels + level
        available = torch.zeros(target.num_images * levels, dtype=torch.float64, device=logits.device)
        available.index_add_(0, group, candidate.to(available.dtype))
        wanted = negatives_wanted(target, self.ratio, self.minimum)
        probability = selection_probability(available.view(-1, levels), wanted).flatten()
        drawn = uniform(_position_in_image(target), self.steps) < probability[group]
        return weights.times(negative_location=(drawn | positive).to(torch.float32))

    def _level(self, logits: Tensor, target: ClassificationTarget, candidate: Tensor) -> tuple[Tensor, int]:
        """(R,) int64 bin of each location, by its closeness to an object, and the number of bins."""
        if not self.by_location:
            # The floor is bin 0, and bin k holds the heights up to k / K.
            return (tallest_gaussian(target) * self.bins).ceil().to(torch.int64), self.bins + 1
        if target.location_overlap is None:
            closeness = _relative_score(logits, target, candidate)
        else:
            closeness = target.location_overlap / self.max_overlap
        return (closeness * self.bins).to(torch.int64).clamp(0, self.bins - 1), self.bins


def selection_probability(available: Tensor, wanted: Tensor) -> Tensor:
    """Probability of each candidate to be drawn (Libra R-CNN, eq. 2, with the shares of short bins redistributed).

    Args:
        available: (B, K) float64, candidates in each bin of each image.
        wanted: (B,) negatives to draw in each image.

    Returns:
        (B, K) float64 in [0, 1]; times ``available`` it sums to ``wanted``, or to the number of candidates if there are fewer.
    """
    wanted = wanted.to(available.dtype).unsqueeze(1)
    share = torch.minimum(available, wanted / available.shape[1])
    rest = available - share
    missing = wanted - share.sum(1, keepdim=True)
    extra = rest * (missing / rest.sum(1, keepdim=True).clamp(min=1e-9)).clamp(0.0, 1.0)
    return (share + extra) / available.clamp(min=1.0)


def tallest_gaussian(target: ClassificationTarget) -> Tensor:
    """(R,) float64 in [0, 1], height of the tallest Gaussian of any class at each location of a heat map."""
    height = torch.zeros(target.num_locations, dtype=torch.float64, device=target.image.device)
    if target.negative_index is None or not target.num_locations:
        return height
    location = torch.div(target.negative_index.clamp(min=0), target.num_classes, rounding_mode="floor")
    own = 1.0 - target.negative_scale.double() ** (1 / _PENALTY_POWER)
    return height.scatter_reduce_(0, location, torch.where(target.negative_index >= 0, own, 0.0), "amax")


def _relative_score(logits: Tensor, target: ClassificationTarget, candidate: Tensor) -> Tensor:
    """(R,) largest probability of each location over that of its image's candidates, in [0, 1] at these."""
    loss = largest_negative_losses(logits, target, CROSS_ENTROPY)
    score = torch.where(candidate, -torch.expm1(-loss), 0.0)
    best = score.new_zeros(target.num_images).scatter_reduce_(0, target.image, score, "amax")
    return score / best.clamp(min=torch.finfo(score.dtype).tiny)[target.image]


def _position_in_image(target: ClassificationTarget) -> Tensor:
    """(R,) int64, 0 at the first location of each image."""
    size = torch.zeros(target.num_images, dtype=torch.int64, device=target.image.device)
    size.index_add_(0, target.image, torch.ones_like(target.image))
    number = torch.arange(target.num_locations, device=target.image.device)
    return number - (size.cumsum(0) - size)[target.image]
