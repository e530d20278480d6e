"""IoU-balanced sampling of Libra R-CNN (Pang et al., CVPR 2019, 3.1): negatives of all degrees of overlap.

Drawn at random, nearly all negatives are far from every object, while most hard ones overlap one. So the
range of overlap is cut into K bins, and each gives the same number of negatives (eq. 2):

    W = 1 with probability p_k = (N / K) / M_k, else 0

where N negatives are wanted in an image that has M_k candidates in bin k.

What bins with fewer candidates than N / K leave open is drawn evenly from the rest of the others, as in the
official code. Positives always stay. Defaults: K = 3; N = 3 for each positive and at least 384, the official
512 samples of an image with a quarter of positives; bins over IoU in [0, 0.4), up to where RetinaNet's
negatives end. Pair it with cross-entropy: gamma 0, alpha off.

Anchors: a sample is a location, binned by its largest IoU with any object. Grids, which have no IoU: the
surrogate is the location's largest probability relative to the largest of the image's negatives, bins over
[0, 1]: like the IoU it says how much a negative resembles an object, and high bins are sparse. Heat maps: a
sample is an element, binned by the height of the Gaussian it lies in, Y = 1 - negative_scale^(1/4):
(0, 1/3], (1/3, 2/3], (2/3, 1), and the floor Y = 0 as one bin more. The scale keeps multiplying the loss, so
of the high bins little arrives.

Differs from the official code: each negative is drawn by itself with p_k, so that N is met on average; the
bins' upper end is a constant and not the largest overlap of the batch, positives included; the floor has a
part in all steps and not from the second on; the divisor is the detector's normaliser. The numbers drawn
depend on the optimiser step and the place in the image alone: no generator is used, a run resumes exactly,
and two processes draw what one does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from afl.losses.fused import block_rows
from afl.losses.primitive import scaled_negatives
from afl.losses.sampling import (
    CROSS_ENTROPY,
    check_ratio,
    largest_negative_losses,
    negatives_wanted,
    plain_negatives_per_image,
    positive_locations,
)
from afl.losses.target import ClassificationTarget
from afl.losses.weighting import ElementWeights, MapInfo, Weighting

# CornerNet's beta (eq. 1): a negative at height Y counts (1 - Y)^4.
_PENALTY_POWER = 4
_BLOCK = 1 << 16


class IouBalancedSampling(Weighting):
    """Keeps all positives, and negatives drawn in equal parts from bins of their closeness to objects.

    Args:
        info: the map; ``dense_positives`` tells anchors and grids from heat maps.
        ratio: negatives for each positive of the image.
        minimum: least number of negatives in an image.
        bins: K.
        max_overlap: IoU at which negatives end; what lies above is in the last bin.
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
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(
        self, logits: Tensor, target: ClassificationTarget, weights: ElementWeights
    ) -> ElementWeights:
        wanted = negatives_wanted(target, self.ratio, self.minimum)
        if self.by_location:
            return weights.times(negative_location=self._locations(logits, target, wanted))
        return weights.times(negative_element=self._elements(logits, target, wanted))

    def update(self) -> None:
        self.steps += 1

    def _locations(self, logits: Tensor, target: ClassificationTarget, wanted: Tensor) -> Tensor:
        """(R,) 1 at positive and drawn locations, 0 elsewhere."""
        positive = positive_locations(target)
        candidate = ~positive if target.ignored is None else ~positive & ~target.ignored
        if target.location_overlap is None:
            closeness = _relative_score(logits, target, candidate)
        else:
            closeness = target.location_overlap / self.max_overlap
        group = target.image * self.bins + (closeness * self.bins).to(torch.int64).clamp(0, self.bins - 1)
        available = torch.zeros(target.num_images * self.bins, dtype=torch.float64, device=logits.device)
        available.index_add_(0, group, candidate.to(available.dtype))
        probability = selection_probability(available.view(-1, self.bins), wanted).flatten()
        drawn = uniform(_position_in_image(target), self.steps) < probability[group]
        return (drawn | positive).to(torch.float32)

    def _elements(self, logits: Tensor, target: ClassificationTarget, wanted: Tensor) -> Tensor:
        """(R, C) bool, elements drawn; what it says of positives and ignored locations is not read."""
        (locations, classes), groups = logits.shape, self.bins + 1
        place = _position_in_image(target)
        available = torch.zeros((target.num_images, groups), dtype=torch.float64, device=logits.device)
        available[:, 0] = plain_negatives_per_image(logits, target)
        near = scaled_negatives(logits, target, CROSS_ENTROPY)
        if near is not None:
            location = torch.div(near.index, classes, rounding_mode="floor")
            height = 1.0 - target.negative_scale.double() ** (1 / _PENALTY_POWER)
            level = (height * self.bins).ceil().to(torch.int64).clamp(0, self.bins)
            group = target.image[location] * groups + level
            available.view(-1).index_add_(0, group, near.valid.to(available.dtype))
        probability = selection_probability(available, wanted)

        # One element more than the map has, for what padding writes.
        drawn = torch.zeros(locations * classes + 1, dtype=torch.bool, device=logits.device)
        floor, label = probability[:, 0].to(torch.float32), torch.arange(classes, device=logits.device)
        step = block_rows(classes, logits.device, _BLOCK)
        for start in range(0, locations, step):
            rows = slice(start, min(start + step, locations))
            number = uniform(place[rows, None] * classes + label, self.steps)
            drawn[rows.start * classes : rows.stop * classes] = (
                number < floor[target.image[rows], None]
            ).flatten()
        if near is not None:
            number = uniform(place[location] * classes + near.index % classes, self.steps)
            index = torch.where(near.valid, near.index, locations * classes)
            drawn[index] = number < probability.flatten()[group]
        return drawn[:-1].view(locations, classes)


def selection_probability(available: Tensor, wanted: Tensor) -> Tensor:
    """Probability of each candidate to be drawn (Libra R-CNN, eq. 2, with what short bins leave open).

    Args:
        available: (B, K) float64, candidates in each bin of each image.
        wanted: (B,) negatives to draw in each image.

    Returns:
        (B, K) float64 in [0, 1]; times ``available`` it sums to ``wanted``, or to all there are.
    """
    wanted = wanted.to(available.dtype).unsqueeze(1)
    share = torch.minimum(available, wanted / available.shape[1])
    rest = available - share
    missing = wanted - share.sum(1, keepdim=True)
    extra = rest * (missing / rest.sum(1, keepdim=True).clamp(min=1e-9)).clamp(0.0, 1.0)
    return (share + extra) / available.clamp(min=1.0)


def uniform(position: Tensor, step: Tensor) -> Tensor:
    """A number in [0, 1) for each position, float32, as good as random and anew in every step.

    Args:
        position: int64 below 2^32, any shape.
        step: int64 scalar.
    """
    number = _scrambled(position ^ _scrambled(step + 1))
    return (number >> 8).to(torch.float32) * 2.0**-24


def _scrambled(x: Tensor) -> Tensor:
    """A bijection of 32-bit numbers that carries every bit into all others."""
    for _ in range(2):
        # The factor has 27 bits: no product leaves int64.
        x = ((x >> 16) ^ x) * 0x45D9F3B & 0xFFFFFFFF
    return (x >> 16) ^ x


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
