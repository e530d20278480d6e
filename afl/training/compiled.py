"""The compiled forward pass, and the padding that limits the number of image shapes it is compiled for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

# The short and the long side of a batch are padded to multiples of these. Each shape is compiled separately, so a compiled run
# uses coarse multiples: images of up to 1333 pixels then have about 15 shapes. Crops of a fixed size have one shape.
DIVISORS, DIVISORS_COMPILED = (32, 32), (128, 256)
_MOST_SHAPES = 128


def wants_compiled(choice: bool | str, device: torch.device) -> bool:
    """Whether ``trainer.compile`` (true, false or ``auto``) asks for a compiled pass; ``auto`` compiles on a GPU."""
    return device.type == "cuda" if choice == "auto" else bool(choice)


def compiled_forward(detector: nn.Module) -> Callable[[Tensor], dict[str, Tensor]]:
    """The detector's forward pass, compiled for each shape of its images; it shares the detector's weights."""
    # Dynamo silently stops compiling beyond its limit, so the limit is set to the largest number of shapes.
    torch._dynamo.config.recompile_limit = _MOST_SHAPES
    return torch.compile(detector, dynamic=False)
