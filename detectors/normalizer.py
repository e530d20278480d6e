"""The normaliser: the number by which sums of losses are divided."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def mean_over_ranks(count: Tensor) -> Tensor:
    """Mean of a per-process count over all processes, as a float32 scalar on the device; of at least 1 in all of them.

    Gradients are averaged over processes, so dividing each local sum by the mean count gives the same gradient as one
    process with the whole batch would (the published gap between FCOS on 4 and on 8 GPUs came from omitting this).
    """
    count = count.float()
    if dist.is_available() and dist.is_initialized():
        count = count.clone()
        dist.all_reduce(count)
        # At least 1 in the whole batch, but not necessarily in each process's part of it.
        return count.clamp(min=1.0) / dist.get_world_size()
    return count.clamp(min=1.0)
