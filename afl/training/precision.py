"""The arithmetic of the network: float32, or bfloat16 by autocast on every device.

PyTorch computes bfloat16 convolutions with a reference kernel on CPUs without AVX-512, which takes 20 times as long as float32.
There, convolutions round their arguments and their result to bfloat16 and calculate in float32, as processors with bfloat16
instructions do. Both agree up to the order of sums.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from detectors.depthwise import fast_bfloat16


@contextlib.contextmanager
def network_precision(device_type: str, dtype: torch.dtype | None) -> Iterator[None]:
    """A context for the forward pass of a network.

    Args:
        device_type: "cpu" or "cuda".
        dtype: type of the network's arithmetic; None for float32.
    """
    wide = device_type == "cpu" and dtype == torch.bfloat16 and not fast_bfloat16()
    with (
        torch.autocast(device_type, dtype, enabled=dtype is not None),
        WideConvolutions() if wide else contextlib.nullcontext(),
    ):
        yield


class WideConvolutions(TorchFunctionMode):
    """Computes 2D convolutions under autocast in float32, with arguments and result rounded to bfloat16.

    The gradients are rounded in the same places: those of arguments and results are bfloat16, sums are float32.
    """

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Call ``func``."""
        kwargs = kwargs or {}
        if func is not torch.conv2d or not torch.is_autocast_enabled("cpu"):
            return func(*args, **kwargs)
        args = [_rounded(value) for value in args]
        kwargs = {name: _rounded(value) for name, value in kwargs.items()}
        with torch.autocast("cpu", enabled=False):
            return func(*args, **kwargs).bfloat16()


def _rounded(value: Any) -> Any:
    return value.bfloat16().float() if isinstance(value, Tensor) else value
