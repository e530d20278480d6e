"""The Adaptive Gradient Function: a gate that bounds every gradient while the model is immature.

The formula of the paper is not public; this is a *reconstruction* from its description. docs/losses.md
defines all symbols.

    u     = W G_gamma(g)                                    size of the weighted gradient, without alpha_t
    A     = 1 / (1 + kappa u / tau)                         the gate, detached; A u is bounded by tau / kappa
    kappa = kappa_0 clip((ghat - h) / (ghat_0 - h), 0, 1)   ghat: running mean of g over positives, h = 1/2

A fresh head gives every positive g = 1 - prior, so ghat starts at ghat_0 = 1 - prior and kappa at kappa_0. Once the mean g
over positives is below h, kappa is 0, the gate is 1, and the loss is class-balanced focal loss. The defaults kappa_0 = tau
= 1, a momentum of 0.99 and h = 1/2 are ours; results/protocol.md lists the ones that were searched.

The gate works the same way on anchors, grids and heat maps. On a heat map W includes the scale (1 - Y)^4 of a negative. A
soft positive has g = |p - y| and counts as one positive in ghat. A fresh head then has g of about y instead of 1 - prior, so on a
map whose targets are mostly below a half (ObjectBox's objectness) ghat falls below h, and the gate opens, before anything is learnt.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from afl.losses.contract import MapInfo
from afl.losses.maturity import Maturity
from afl.losses.primitive import positives
from afl.losses.target import ClassificationTarget
from afl.losses.weighting import ElementWeights, StepCounting, Weighting, positive_logits


class AdaptiveGradient(Weighting):
    """The gate, opened by the model's own progress on the positives.

    Args:
        info: the map; its ``prior`` is where the running mean starts.
        kappa: kappa_0, strength of the gate for a fresh head, not negative; 0 switches it off.
        tau: positive; with kappa_0 = 1, the bound on the gradient of a fresh head. Only kappa_0 / tau has an effect on the loss; both
            exist because the equations name both.
        momentum: of the running mean of g, per optimiser step.
        threshold: h, the mean g at which the gate is fully open.
        per_class: keep a running mean, and so a kappa, for every class; a class is updated only in steps that have one
            of its positives.
        negatives: gate the negatives as well. If False, the link does not set the gate but multiplies the weights that
            positives have so far, so put it after every link that weighs positives.
    """

    def __init__(
        self,
        info: MapInfo,
        *,
        kappa: float = 1.0,
        tau: float = 1.0,
        momentum: float = 0.99,
        threshold: float = 0.5,
        per_class: bool = False,
        negatives: bool = True,
    ) -> None:
        super().__init__()
        check_gate(kappa, tau)
        self.kappa_0, self.tau, self.negatives = float(kappa), float(tau), negatives
        self.sets_gate, self.reads_positive_weights = negatives, not negatives
        self.maturity = Maturity(
            prior=info.prior,
            threshold=threshold,
            momentum=momentum,
            groups=info.num_classes if per_class else 1,
        )

    @property
    def kappa(self) -> Tensor:
        """Scalar, or (C,) with one per class."""
        return self.kappa_0 * self.maturity.immaturity

    def forward(
        self, logits: Tensor, target: ClassificationTarget, weights: ElementWeights
    ) -> ElementWeights:
        if self.training:
            self.maturity.observe_map(logits, target)
        gated = replace(weights, gate=self.kappa / self.tau)
        if self.negatives:
            return gated
        found = positives(positive_logits(logits, target), target, gated)
        return weights if found is None else replace(weights, positive=found.weight)

    def update(self) -> None:
        self.maturity.update()

    def statistics(self) -> dict[str, float | Tensor]:
        return {"ghat": self.maturity.ghat.squeeze(), "kappa": self.kappa}


class ScheduledGradient(StepCounting):
    """The same gate, opened by a schedule: kappa = kappa_0 max(0, 1 - t / fade_steps)^2 after t optimiser steps.

    Args:
        info: the map.
        fade_steps: number of optimiser steps after which the gate is fully open, positive.
        kappa, tau: see ``AdaptiveGradient``.
    """

    sets_gate = True

    def __init__(self, info: MapInfo, *, fade_steps: int, kappa: float = 1.0, tau: float = 1.0) -> None:
        super().__init__()
        check_gate(kappa, tau)
        if fade_steps <= 0:
            raise ValueError(f"fade_steps is {fade_steps}, but the gate needs at least one step to open.")
        self.kappa_0, self.tau, self.fade_steps = float(kappa), float(tau), fade_steps

    @property
    def kappa(self) -> Tensor:
        """Scalar."""
        return self.kappa_0 * (1.0 - self.steps / self.fade_steps).clamp(min=0.0) ** 2

    def forward(
        self, logits: Tensor, target: ClassificationTarget, weights: ElementWeights
    ) -> ElementWeights:
        return replace(weights, gate=self.kappa / self.tau)

    def statistics(self) -> dict[str, float | Tensor]:
        return {"kappa": self.kappa}


def check_gate(kappa: float, tau: float) -> None:
    """Raise ValueError if the gate could leave (0, 1]."""
    if kappa < 0 or tau <= 0:
        raise ValueError(
            f"kappa is {kappa} and tau {tau}, but kappa must not be negative and tau must be positive."
        )
