"""The compiled forward pass, and how many shapes it is built for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

# Padded sides of batches are multiples of this. A compiled pass is built once for each shape: with images of up to 1333
# pixels there are at most 11 x 11 of them, and a few dozen in practice; crops of a fixed size have one.
DIVISOR, DIVISOR_COMPILED = 32, 128
_MOST_SHAPES = 128


def wants_compiled(choice: bool | str, device: torch.device) -> bool:
    """What ``trainer.compile`` means: true, false, or ``auto``: on a GPU.

    Raises:
        ValueError: anything else.
    """
    if choice not in (True, False, "auto"):
        raise ValueError(f"trainer.compile is {choice!r}; it is auto, true or false")
    return device.type == "cuda" if choice == "auto" else bool(choice)


def compiled_forward(detector: nn.Module) -> Callable[[Tensor], dict[str, Tensor]]:
    """The detector's forward pass, built anew for each shape of its images; weights stay the detector's own."""
    # Beyond its limit dynamo silently stops compiling; the limit here is that of the shapes.
    torch._dynamo.config.recompile_limit = _MOST_SHAPES
    return torch.compile(detector, dynamic=False)
