"""Balance of a group's negatives against its positives, by the mass of their gradients.

    P = running sum over positives of |gradient|,   N = the same over negatives, before any gate
    a = clip((ratio P / N)^power, minimum, 1)       factor of all negatives of the group

A heat map of a fresh head has a million easy negatives whose gradients are tiny but have a large sum. The Adaptive
Gradient Function bounds single gradients; this link bounds their sum.
As negatives are learnt, N falls and a rises. It reaches 1 only if N <= ratio P at the end, so without a
``threshold`` the balance is permanent. With one it fades as the model's positives are learnt,

    1 - i (1 - a),    i = clip((ghat - threshold) / (ghat_0 - threshold), 0, 1), the model's immaturity

and the loss ends without it. Not published; the defaults are ours. Anchors, grids and heat maps
alike; N includes a heat map's (1 - Y)^4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from afl.losses.contract import MapInfo
from afl.losses.distributed import all_reduce_sum
from afl.losses.maturity import Maturity
from afl.losses.primitive import gradient_mass
from afl.losses.target import ClassificationTarget
from afl.losses.weighting import ElementWeights, Weighting


class GradientBalance(Weighting):
    """Scales negatives so that their gradients together weigh at most ``ratio`` times the positives'.

    Put it after the links whose weights it must include. The current batch counts, so the first step is already
    balanced. A batch without positives changes nothing. In training it costs a second pass over the logits
    and, under torch.distributed, a small all-reduce in ``forward``, which all ranks must call equally often.

    Args:
        info: the map.
        ratio: allowed mass of negatives for each unit of positives' mass, positive.
        power: not negative; 1 balances in full, less in part.
        minimum: smallest factor, in (0, 1].
        decay: of the running sums, in [0, 1], per optimiser step; 1 never forgets, which rare classes need.
        per_class: one balance for every class instead of one for the map.
        threshold: mean g over positives below which nothing is balanced; None keeps the balance for the whole training.
        momentum: of that mean, per optimiser step.
    """

    running: Tensor
    pending: Tensor

    def __init__(
        self,
        info: MapInfo,
        *,
        ratio: float = 1.0,
        power: float = 1.0,
        minimum: float = 1e-4,
        decay: float = 0.99,
        per_class: bool = False,
        threshold: float | None = None,
        momentum: float = 0.99,
    ) -> None:
        super().__init__()
        if ratio <= 0 or power < 0 or not 0 < minimum <= 1 or not 0 <= decay <= 1:
            raise ValueError(
                f"ratio {ratio} must be positive, power {power} not negative, minimum {minimum} in (0, 1] "
                f"and decay {decay} in [0, 1]."
            )
        self.num_classes, self.per_class = info.num_classes, per_class
        self.ratio, self.power, self.minimum, self.decay = ratio, power, minimum, decay
        self.maturity = None
        if threshold is not None:
            self.maturity = Maturity(prior=info.prior, threshold=threshold, momentum=momentum)
        groups = info.num_classes if per_class else 1
        # Rows: mass of positives, mass of negatives.
        self.register_buffer("running", torch.zeros(2, groups, dtype=torch.float64))
        self.register_buffer("pending", torch.zeros(2, groups, dtype=torch.float64))

    def forward(
        self, logits: Tensor, target: ClassificationTarget, weights: ElementWeights
    ) -> ElementWeights:
        mass = self.running
        if self.training:
            seen = torch.stack(gradient_mass(logits, target, weights, by_class=self.per_class))
            # Summed over ranks here and not in ``update``: all of them must balance their first step alike.
            seen = all_reduce_sum(seen)
            seen = torch.where(seen[0].sum() > 0, seen, 0.0)
            self.pending += seen
            if self.maturity is not None:
                self.maturity.observe_map(logits, target)
            mass = self.decay * self.running + seen
        factor = self._factor(mass).to(torch.float32)
        return weights.times(negative_class=factor.expand(self.num_classes))

    def update(self) -> None:
        moved = self.decay * self.running + self.pending
        self.running.copy_(torch.where(self.pending[0].sum() > 0, moved, self.running))
        self.pending.zero_()
        if self.maturity is not None:
            self.maturity.update()

    def statistics(self) -> dict[str, float | Tensor]:
        return {"negative_factor": self._factor(self.running).squeeze()}

    def _factor(self, mass: Tensor) -> Tensor:
        """(groups,) a; 1 for a group that has had no positive yet."""
        positive, negative = mass
        balance = self.ratio * positive / negative.clamp(min=torch.finfo(mass.dtype).tiny)
        factor = torch.where(positive > 0, balance.pow(self.power).clamp(self.minimum, 1.0), 1.0)
        return factor if self.maturity is None else 1.0 - self.maturity.immaturity * (1.0 - factor)
