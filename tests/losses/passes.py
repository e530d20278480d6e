"""Counts torch operations that read or write a tensor of the size of a whole map."""

from __future__ import annotations

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# These operations only access a few elements of a map.
AT_ELEMENTS = ("index", "index_add_", "index_put_", "_index_put_impl_", "index_select", "gather", "scatter_")
NO_PASS = ("empty", "empty_like", "new_empty", "empty_strided", *AT_ELEMENTS)


class Passes(TorchDispatchMode):
    """Counts torch operations that read or write a tensor of at least ``size`` elements."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.found, self.allocated = size, Counter(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        tensors, _ = torch.utils._pytree.tree_flatten((args, kwargs, result))
        whole = any(isinstance(t, torch.Tensor) and t.numel() >= self.size for t in tensors)
        if whole and name in ("empty", "empty_like", "new_empty", "empty_strided"):
            self.allocated += 1
        if whole and not func.is_view and name not in NO_PASS:
            self.found[name] += 1
        return result
