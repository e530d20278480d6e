"""EQLv2: class balance by gradients (Tan et al., Equalization Loss v2, CVPR 2021).

    g_j  = sum over all steps of positives' |gradient| / the same of negatives', both of class j
    f(x) = 1 / (1 + exp(-gamma (x - mu)))
    w-_j = f(g_j)                       on negatives of class j
    w+_j = 1 + alpha (1 - f(g_j))       on its positives

A class that is pushed down more than up has its negatives muted and its positives amplified, until the two
balance at about mu. Defaults of the official code: gamma = 12, mu = 0.8, alpha = 4; before the first step
g_j is 100, so that all weights are 1. The element loss is cross-entropy without alpha_t (``gamma: 0`` and
``alpha: -1`` of the loss itself).

Anchor heads: sums run over all locations, where the paper has the proposals of a second stage. With
thousands of background locations to a positive, the ratios start near 0 and the negatives of *every* class
are muted first: the weights do the work of foreground against background too. (The authors of the official
code say that it does not serve one-stage detectors for that reason: tztztztztz/eqlv2, issue 1.) Heat maps: the
same, negatives with their (1 - Y)^4.

Nothing is forgotten, so where a head starts decides what becomes of it: the gradients of the first step, whose
weights are 1, stay in the sums for good. The head therefore starts at a probability of 0.001 (``prior``), as
the official code's does with every sigmoid loss. At a heat map's usual 0.1 that one step has more gradient on
the negatives of a rare class than there is on its positives until the end. CenterNet on LongTail Shapes, one
seed: from 0.1, the negatives of the most muted class weighed 7e-5 in all 840 steps, and AP was 27.1 (rare
classes 14.8; FL 40.4 and 24.4); from 0.001, in a later series of runs, it is 41.6 (25.0; FL 42.3 and 26.5).

Differs from the official code: sums go over ranks once per optimiser step, and need no torch.distributed;
there is no extra channel for objectness; a soft positive weighs w- + y (w+ - w-), as that code's formula
gives for a soft target, and its whole gradient counts as a positive one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from afl.losses.contract import MapInfo
from afl.losses.gradient import computing_type
from afl.losses.gradient_ratio import GradientRatio
from afl.losses.target import ClassificationTarget
from afl.losses.weighting import ElementWeights, Weighting

# Far beyond mu, so f is 1 for a class that nothing is known of.
_UNKNOWN = 100.0


class EqualizationV2(Weighting):
    """Weighs the positives and the negatives of each class by its ratio of gradients so far.

    Put it behind the links whose weights its sums have to see; it sees its own. In training it costs a second
    pass over the logits.

    Args:
        info: the map.
        gamma: steepness of f, positive.
        mu: ratio at which f is 1/2.
        alpha: most that a positive's weight can gain, not negative.
        prior: probability that a fresh head should give to every element; None: what it is used to.
    """

    def __init__(
        self,
        info: MapInfo,
        *,
        gamma: float = 12.0,
        mu: float = 0.8,
        alpha: float = 4.0,
        prior: float | None = 0.001,
    ) -> None:
        super().__init__()
        if gamma <= 0 or alpha < 0:
            raise ValueError(f"gamma is {gamma} and alpha {alpha}, but must be positive and not negative.")
        if prior is not None and not 0 < prior < 1:
            raise ValueError(f"prior is {prior}, but must lie between 0 and 1.")
        self.head_prior = prior
        self.gamma, self.mu, self.alpha = gamma, mu, alpha
        self.ratio = GradientRatio(info.num_classes, initial=_UNKNOWN)

    def forward(
        self, logits: Tensor, target: ClassificationTarget, weights: ElementWeights
    ) -> ElementWeights:
        negative = self._negative().to(computing_type(logits.dtype))
        positive = 1.0 + self.alpha * (1.0 - negative)
        label = target.positive_class
        if target.value is None:
            on_positives = positive[label]
        else:
            on_positives = torch.lerp(negative[label], positive[label], target.value.to(negative.dtype))
        weights = weights.times(positive=on_positives, negative_class=negative)
        if self.training:
            self.ratio.observe(logits, target, weights)
        return weights

    def update(self) -> None:
        self.ratio.update()

    def statistics(self) -> dict[str, float | Tensor]:
        negative = self._negative()
        return {"negative_weight_min": negative.min(), "negative_weight_max": negative.max()}

    def _negative(self) -> Tensor:
        """(C,) float64 w-_j."""
        return torch.sigmoid(self.gamma * (self.ratio.value - self.mu))
