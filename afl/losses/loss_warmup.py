"""Control for every loss that starts weak: the whole loss fades in, and nothing else changes.

    (start + (1 - start) min(1, t / steps)) times the loss, after t optimiser steps

A gate that only shrinks all gradients early would have the same effect. With Adam a common factor on all gradients has almost no effect
after some steps, unless the classification loss shares the network with other terms. Defaults: start = 0.1; ``conf/loss`` has steps =
210, a quarter of the embedded benchmark's training. Not published. Anchors, grids and heat maps alike.
"""

from __future__ import annotations

from torch import Tensor

from afl.losses.contract import MapInfo
from afl.losses.target import ClassificationTarget
from afl.losses.weighting import ElementWeights, StepCounting


class LossWarmUp(StepCounting):
    """Weight lambda = start + (1 - start) min(1, t / steps) on every element after t optimiser steps.

    Args:
        info: the map.
        steps: length of the rise in optimiser steps, positive.
        start: weight at the first step, in [0, 1].
    """

    fades = True

    def __init__(self, info: MapInfo, *, steps: int, start: float = 0.1) -> None:
        super().__init__()
        if steps <= 0 or not 0 <= start <= 1:
            raise ValueError(
                f"steps is {steps} and start {start}, but steps must be positive and start in [0, 1]."
            )
        self.length, self.start, self.num_classes = steps, start, info.num_classes

    @property
    def factor(self) -> Tensor:
        """Scalar in [0, 1]."""
        return self.start + (1.0 - self.start) * (self.steps / self.length).clamp(max=1.0)

    def forward(
        self, logits: Tensor, target: ClassificationTarget, weights: ElementWeights
    ) -> ElementWeights:
        return weights.times(
            positive=self.factor.expand(target.positive.shape),
            negative_class=self.factor.expand(self.num_classes),
        )

    def statistics(self) -> dict[str, float | Tensor]:
        return {"factor": self.factor}
