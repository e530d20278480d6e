"""A cap on the gradients of positives, relative to the mean gradient that focal loss gives them at the moment.

A form of Adaptive Focal Loss; like the others it is a *reconstruction*, because the paper's formula is not public.

    A   = min(1, rho Gbar / u)      u = w G_gamma(g), size of a positive's weighted gradient, alpha_t apart
    rho = rho_0 / i                 i = clip((ghat - h) / (ghat_0 - h), 0, 1), the model's immaturity

Gbar is the running mean over positives of the unweighted G, ghat that of g; the mean of a class-weighted loss would
itself follow the weights. A fresh head has i = 1: no positive pushes more than rho_0 times what an average positive
pushes under focal loss, whatever its class weighs. As positives are learnt, rho rises. At i = 0 there is no cap, which is
class-balanced focal loss. Gradients below the cap are those of class-balanced focal loss, unlike under the gate of
``AdaptiveGradient``, which makes all of them smaller. Defaults: rho_0 = 1, a momentum of 0.99 and h = 1/2, all ours.

Only positives are capped: they alone have class weights, and G never exceeds 1.13 at gamma = 2, so with rho_0 = 1 the
cap of a fresh head (Gbar = 1.06 at a prior of 0.01) could take at most 6 % from a negative. Anchors, grids and heat maps
alike. On a soft positive G is |dv/dz| and g is |p - y|.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from afl.losses.contract import MapInfo
from afl.losses.gradient import focal_gradient
from afl.losses.maturity import Maturity, update_running_mean
from afl.losses.primitive import positives
from afl.losses.target import ClassificationTarget
from afl.losses.weighting import ElementWeights, Weighting, positive_logits


class RelativeCap(Weighting):
    """Caps the weighted gradients of positives at rho Gbar.

    Put it after every link that weighs positives.

    Args:
        info: the map; the running means start at its ``prior``.
        rho: rho_0, positive.
        momentum: of both running means, per optimiser step.
        threshold: h, the mean g at which the cap is gone.
    """

    reads_positive_weights = True

    size: Tensor
    pending: Tensor

    def __init__(
        self, info: MapInfo, *, rho: float = 1.0, momentum: float = 0.99, threshold: float = 0.5
    ) -> None:
        super().__init__()
        if rho <= 0:
            raise ValueError(f"rho is {rho}, but must be positive.")
        self.rho_0, self.momentum = float(rho), momentum
        self.maturity = Maturity(prior=info.prior, threshold=threshold, momentum=momentum)
        # G of a positive under a fresh head needs gamma, which the loss sets: the buffer holds 0 until then.
        self.fresh = math.log((1.0 - info.prior) / info.prior)
        self.register_buffer("size", torch.zeros(1))
        self.register_buffer("pending", torch.zeros(2, 1, dtype=torch.float64))

    def forward(
        self, logits: Tensor, target: ClassificationTarget, weights: ElementWeights
    ) -> ElementWeights:
        start = focal_gradient(self.size.new_full((1,), self.fresh), weights.gamma_of_positives).mean()
        self.size.copy_(torch.where(self.size > 0, self.size, start))
        found = positives(positive_logits(logits, target), target, replace(weights, gate=None))
        if found is None:
            return weights
        size = found.gradient.abs()
        if self.training:
            self.maturity.observe_map(logits, target)
            seen = torch.where(target.is_positive, size, 0.0).sum(), target.is_positive.sum()
            self.pending += torch.stack([number.to(self.pending.dtype) for number in seen]).unsqueeze(1)
        over = found.weight * size * self.maturity.immaturity / (self.rho_0 * self.size)
        return weights.times(positive=over.clamp(min=1.0).reciprocal())

    def update(self) -> None:
        self.maturity.update()
        update_running_mean(self.size, self.pending, self.momentum)

    def statistics(self) -> dict[str, float | Tensor]:
        # 1 / rho, because rho itself grows without bound.
        inverse = self.maturity.immaturity / self.rho_0
        return {
            "ghat": self.maturity.ghat.squeeze(),
            "mean_size": self.size.squeeze(),
            "inverse_rho": inverse,
        }
