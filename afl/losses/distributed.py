"""The collective operation of the losses."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of ``tensor`` over all ranks, in place; the unchanged tensor without torch.distributed."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor
