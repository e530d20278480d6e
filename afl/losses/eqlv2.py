"""EQLv2: class balance by gradients (Tan et al., Equalization Loss v2, CVPR 2021).

    g_j  = sum over all steps of positives' |gradient| / the same of negatives', both of class j
    f(x) = 1 / (1 + exp(-gamma (x - mu)))
    w-_j = f(g_j)                       on negatives of class j
    w+_j = 1 + alpha (1 - f(g_j))       on its positives

If a class is pushed down more than up, its negatives are muted and its positives amplified until the two balance at about
mu. Defaults of the official code: gamma = 12, mu = 0.8, alpha = 4. Before the first step g_j is 100, so all weights are 1.
The element loss is cross-entropy without alpha_t (``gamma: 0`` and ``alpha: -1`` of the loss itself).

Anchor heads: sums run over all locations, where the paper has the proposals of a second stage. A positive has thousands of
background locations, so the ratios start near 0 and the negatives of *every* class are muted first: the weights also
balance foreground against background. (The authors of the official code say that it does not suit one-stage detectors for
that reason: tztztztztz/eqlv2, issue 1.) Heat maps: the same, negatives with their (1 - Y)^4.

The sums never decay, so the head's starting probability matters: the gradients of the first step, whose weights are 1, stay
in the sums. The head therefore starts at a probability of 0.001 (``prior``), as in the official code with every sigmoid
loss. At a heat map's usual 0.1, that first step has more gradient on the negatives of a rare class than its positives get
in the whole training (results/single_runs.md).

Differs from the official code: sums are reduced over ranks once per optimiser step and do not need torch.distributed; there
is no extra channel for objectness; a soft positive has the weight w- + y (w+ - w-), as that code's formula gives for a soft
target, and its whole gradient counts as a positive one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from afl.losses.contract import MapInfo
from afl.losses.gradient import computing_type
from afl.losses.gradient_ratio import GradientRatio
from afl.losses.target import ClassificationTarget
from afl.losses.weighting import ElementWeights, Weighting

# Far above mu, so f is 1 for a class without gradients so far.
_UNKNOWN = 100.0


class EqualizationV2(Weighting):
    """Weighs the positives and the negatives of each class by its ratio of gradients so far.

    Put it after the links whose weights its sums must include; its own weights are included. In training it costs a second
    pass over the logits.

    Args:
        info: the map.
        gamma: steepness of f, positive.
        mu: ratio at which f is 1/2.
        alpha: largest increase of a positive's weight, not negative.
        prior: probability that a fresh head must give to every element, strictly between 0 and 1; None keeps the detector's own.
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
