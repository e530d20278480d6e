"""Corner pooling (Law & Deng, CornerNet, ECCV 2018, 3.3) as a running maximum, with no compiled extension.

Nothing of an object lies at the corner of its box, so each cell is told the largest value that a walk from it meets:
for a top left corner, downwards (where the left side may be) and to the right (where the top side may be). A running
maximum along one axis gives all walks of that axis at once; walks against the axis flip it before and after.

Among equal values the gradient goes to the one that the walk meets last; the official kernel takes the first, a
maximum of pairs would split it. All are subgradients, and ties are common only at the zeros behind a ReLU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CORNERS = ("top_left", "bottom_right")


def top_pool(x: Tensor) -> Tensor:
    """(..., H, W): at row i the maximum over rows i, i + 1, ..., H - 1 of the same column."""
    return x.flip(-2).cummax(-2).values.flip(-2)


def left_pool(x: Tensor) -> Tensor:
    """(..., H, W): at column j the maximum over columns j, j + 1, ..., W - 1 of the same row."""
    return x.flip(-1).cummax(-1).values.flip(-1)


def bottom_pool(x: Tensor) -> Tensor:
    """(..., H, W): at row i the maximum over rows 0, 1, ..., i of the same column."""
    return x.cummax(-2).values


def right_pool(x: Tensor) -> Tensor:
    """(..., H, W): at column j the maximum over columns 0, 1, ..., j of the same row."""
    return x.cummax(-1).values


# By its pool: the axis of a walk, and whether it goes towards smaller indices.
WALKS = {top_pool: (-2, False), left_pool: (-1, False), bottom_pool: (-2, True), right_pool: (-1, True)}


def pool_by_doubling(x: Tensor, axis: int, towards_start: bool, longest: int) -> Tensor:
    """A running maximum of pads, slices and maxima alone, for exchange formats without an operator for it (ONNX).

    After the step of k, every cell knows the largest of the 2 k cells of its walk that come first, itself included.

    Args:
        x: (B, c, H, W).
        axis: -2 or -1, along which is walked.
        towards_start: whether cells look at smaller indices.
        longest: cells of the longest walk; a longer map needs a larger one.

    Returns:
        The same shape, equal to the pool of ``WALKS`` with this axis and direction.
    """
    step = 1
    while step < longest:
        before, after = (step, 0) if towards_start else (0, step)
        padded = F.pad(x, (before, after) if axis == -1 else (0, 0, before, after), value=float("-inf"))
        x = torch.maximum(x, padded.narrow(axis, after, x.shape[axis]))
        step *= 2
    return x


class CornerPooling(nn.Module):
    """Corner pooling inside a residual block, the trunk of a prediction module (CornerNet, 3.3 and figure 7).

    Two convolutions of half the width, one for each direction, are pooled and added; a convolution brings them back
    to full width, the input is added through a 1x1 convolution, and one more convolution follows.

    Args:
        channels: input and output channels, even.
        corner: one of ``CORNERS``; it chooses the directions.
    """

    def __init__(self, *, channels: int, corner: str) -> None:
        super().__init__()
        if corner not in CORNERS:
            raise ValueError(f"corner is {corner!r}; known are {', '.join(CORNERS)}")
        self.pools = (top_pool, left_pool) if corner == "top_left" else (bottom_pool, right_pool)
        # Both directions read the same input: one convolution, cut in two.
        self.directions = nn.Sequential(_conv(channels, channels, 3), nn.ReLU(inplace=True))
        self.merge = _conv(channels // 2, channels, 3)
        self.shortcut = _conv(channels, channels, 1)
        self.output = nn.Sequential(_conv(channels, channels, 3), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to the same shape."""
        vertical, horizontal = self.directions(x).chunk(2, dim=1)
        pooled = self.pools[0](vertical) + self.pools[1](horizontal)
        return self.output(torch.relu(self.merge(pooled) + self.shortcut(x)))


def _conv(before: int, after: int, size: int) -> nn.Sequential:
    conv = nn.Conv2d(before, after, size, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(after))
