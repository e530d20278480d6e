"""The maturity of a model, measured by the mean size of the gradient over its positives."""

from __future__ import annotations

from importlib import import_module

import torch
from torch import Tensor, nn

from afl.losses.distributed import all_reduce_sum
from afl.losses.fused import uses_triton
from afl.losses.target import ClassificationTarget
from afl.losses.weighting import positive_hardness


class Maturity(nn.Module):
    """Running mean ghat of g = |p - y| over positives, and its distance from a trained head's.

        immaturity = clip((ghat - threshold) / (ghat_0 - threshold), 0, 1)    1 for a fresh head

    Args:
        prior: probability that a fresh head gives to every element; ghat starts at ghat_0 = 1 - prior.
        threshold: ghat below which a model counts as mature, below 1 - prior.
        momentum: of the running mean, in [0, 1), per ``update``.
        groups: 1, or the number of classes for one mean per class; only its own positives update a group.
    """

    ghat: Tensor
    pending: Tensor

    def __init__(
        self, *, prior: float, threshold: float = 0.5, momentum: float = 0.99, groups: int = 1
    ) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}, but must lie in [0, 1).")
        if threshold >= 1 - prior:
            raise ValueError(
                f"A fresh head with prior {prior:.3g} starts at a mean g of {1 - prior:.3g} over positives, "
                f"which must lie above the threshold {threshold:.3g}: lower the prior or the threshold."
            )
        self.ghat_0, self.threshold, self.momentum = 1.0 - prior, threshold, momentum
        self.register_buffer("ghat", torch.full((groups,), self.ghat_0))
        # Sum of g and number of positives since the last update.
        self.register_buffer("pending", torch.zeros(2, groups, dtype=torch.float64))

    @property
    def immaturity(self) -> Tensor:
        """(groups,) in [0, 1]; a scalar for one group."""
        value = ((self.ghat - self.threshold) / (self.ghat_0 - self.threshold)).clamp(0.0, 1.0)
        return value.squeeze(0) if value.numel() == 1 else value

    def observe(self, g: Tensor, count: Tensor, group: Tensor | None = None) -> None:
        """Adds K positives: ``g`` (K,), ``count`` (K,) times each, 0 at padding, of ``group`` (K,) int64, None for one group."""
        seen = torch.stack([g * count, count.to(g.dtype)]).to(self.pending.dtype)
        if group is None:
            self.pending += seen.sum(1, keepdim=True)
        else:
            self.pending.index_add_(1, group, seen)

    def observe_map(self, logits: Tensor, target: ClassificationTarget) -> None:
        """Adds the positives of a map, logits (R, C)."""
        if self.ghat.numel() == 1 and uses_triton(logits):
            kernels = import_module("afl.losses.triton_positives")
            self.pending += kernels.hardness_of_positives(logits, target).unsqueeze(1)
        else:
            group = None if self.ghat.numel() == 1 else target.positive_class
            self.observe(positive_hardness(logits, target), target.is_positive, group)

    def update(self) -> None:
        """Update the running mean from what all ranks have observed since the last call."""
        update_running_mean(self.ghat, self.pending, self.momentum)


def update_running_mean(mean: Tensor, pending: Tensor, momentum: float) -> None:
    """Move ``mean`` (groups,) in place towards the mean of all ranks, and clear ``pending``.

    Args:
        mean: running mean; a group without observations keeps it.
        pending: (2, groups) float64, sum and count of this rank's observations.
        momentum: in [0, 1).
    """
    total, count = all_reduce_sum(pending)
    # Soft targets have fractional counts, so the division only excludes zero itself.
    observed = (total / torch.where(count > 0, count, 1.0)).to(mean.dtype)
    mean.copy_(torch.where(count > 0, torch.lerp(observed, mean, momentum), mean))
    pending.zero_()
