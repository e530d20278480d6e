"""What the fused operations share."""

from __future__ import annotations

import torch
from torch import Tensor

# On an accelerator a block only bounds the memory beside logits and gradient.
_BLOCK_ON_ACCELERATOR = 1 << 24


def block_rows(columns: int, device: torch.device, elements_on_cpu: int) -> int:
    """Rows of one block; on a CPU every thread gets ``elements_on_cpu``, whose buffers fit its cache."""
    elements = elements_on_cpu * torch.get_num_threads() if device.type == "cpu" else _BLOCK_ON_ACCELERATOR
    return max(1, elements // max(columns, 1))


def times_upstream(gradient: Tensor, upstream: Tensor) -> Tensor:
    """The saved gradient times the one that comes from above (a scalar, or of the same shape).

    The usual scalar 1 costs nothing on a CPU, where looking at it is free; elsewhere a look would stop the
    queue.
    """
    if upstream.ndim == 0 and upstream.device.type == "cpu" and upstream.item() == 1.0:
        return gradient
    return gradient * upstream.to(gradient.dtype)
