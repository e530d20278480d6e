"""FL-anchored class weights: focal loss's strength on large gradients, class-balanced strength on small ones.

A form of Adaptive Focal Loss; like the others it is a *reconstruction*, because the paper's formula is not public.

    w~ = w (1 + kappa G) / (1 + kappa w G)

w is the weight that the links before it give to a positive, G = G_gamma(g) the size of its unweighted gradient,
alpha_t apart. A positive that the model gets wrong has a large G and w~ tends to 1, which is focal loss; one that
it gets right has a small G and w~ tends to w, which is class-balanced focal loss. w~ is always between the
two, so no class is pushed less than by the weaker of the two losses. w~ G rises with G, so the order of difficulty stays.

The link has neither state nor schedule. kappa = 0 gives class-balanced focal loss, kappa = infinity focal loss.
kappa = 1 is our default.

Only positives change: class weights leave negatives at w = 1, where w~ = 1 whatever G is. Anchors, grids and heat
maps alike. On a soft positive G is |dv/dz|.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from afl.losses.contract import MapInfo
from afl.losses.primitive import positives
from afl.losses.target import ClassificationTarget
from afl.losses.weighting import ElementWeights, Weighting, positive_logits


class AnchoredGradient(Weighting):
    """Moves the weights of positives towards 1 where their gradients are large.

    Put it after every link that weighs positives.

    Args:
        info: the map.
        kappa: how early the weights give way to focal loss, not negative; 0 switches the link off.
    """

    reads_positive_weights = True

    def __init__(self, info: MapInfo, *, kappa: float = 1.0) -> None:
        super().__init__()
        if kappa < 0:
            raise ValueError(f"kappa is {kappa}, but must not be negative.")
        self.kappa = float(kappa)

    def forward(
        self, logits: Tensor, target: ClassificationTarget, weights: ElementWeights
    ) -> ElementWeights:
        found = positives(positive_logits(logits, target), target, replace(weights, gate=None))
        if found is None:
            return weights
        pull = self.kappa * found.gradient.abs()
        return weights.times(positive=(1.0 + pull) / (1.0 + pull * found.weight))
