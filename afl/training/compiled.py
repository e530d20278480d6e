"""The compiled forward pass, and the number of shapes that it is compiled for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

# The short and the long padded side of a batch are multiples of these. A compiled pass is built once for each shape, so its
# multiples are coarse: images of up to 1333 pixels then have about 15 shapes. Crops of a fixed size have one.
DIVISORS, DIVISORS_COMPILED = (32, 32), (128, 256)
_MOST_SHAPES = 128


def wants_compiled(choice: bool | str, device: torch.device) -> bool:
    """Whether ``trainer.compile`` asks for a compiled pass: true, false, or ``auto``: on a GPU.

    Raises:
        ValueError: anything else.
    """
    if choice not in (True, False, "auto"):
        raise ValueError(f"trainer.compile is {choice!r}; it is auto, true or false")
    return device.type == "cuda" if choice == "auto" else bool(choice)


def compiled_forward(detector: nn.Module) -> Callable[[Tensor], dict[str, Tensor]]:
    """The detector's forward pass, compiled for each shape of its images; it shares the detector's weights."""
    # Beyond its limit dynamo silently stops compiling, so the limit is the number of shapes.
    torch._dynamo.config.recompile_limit = _MOST_SHAPES
    return torch.compile(detector, dynamic=False)
