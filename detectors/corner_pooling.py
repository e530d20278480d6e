"""Corner pooling (Law & Deng, CornerNet, ECCV 2018, 3.3) as a running maximum, without a compiled extension.

The corner of a box has no local evidence, so each cell receives the largest value on a walk that starts at it. For a top
left corner one walk goes down (along a possible left side) and one goes right (along a possible top side). A running
maximum along one axis computes all walks of that axis; walks against the axis flip it before and after.

Among equal values, the gradient goes to the first one on the walk. The official kernel chooses the last, and a maximum of pairs would
split the gradient. All three are subgradients, and ties are common only among the zeros after a ReLU.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CORNERS = ("top_left", "bottom_right")


def top_pool(x: Tensor) -> Tensor:
    """(..., H, W): at row i the maximum over rows i, i + 1, ..., H - 1 of the same column."""
    return _RunningMaximum.apply(x, -2, False)


def left_pool(x: Tensor) -> Tensor:
    """(..., H, W): at column j the maximum over columns j, j + 1, ..., W - 1 of the same row."""
    return _RunningMaximum.apply(x, -1, False)


def bottom_pool(x: Tensor) -> Tensor:
    """(..., H, W): at row i the maximum over rows 0, 1, ..., i of the same column."""
    return _RunningMaximum.apply(x, -2, True)


def right_pool(x: Tensor) -> Tensor:
    """(..., H, W): at column j the maximum over columns 0, 1, ..., j of the same row."""
    return _RunningMaximum.apply(x, -1, True)


class _RunningMaximum(torch.autograd.Function):
    """Running maximum of (..., H, W) along an axis, whose gradients are summed in float32.

    A cell can be the maximum of a whole row, and a bfloat16 sum of that many gradients would lose most of them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: int, towards_start: bool) -> Tensor:
        # A GPU scans the innermost dimension slowly. In channels_last memory that can be the channels, without a copy.
        ctx.moved = x.ndim > 2 and x.stride(-3) == 1
        ctx.axis, ctx.towards_start = axis - ctx.moved, towards_start
        values, index = _RunningMaximum._inner(ctx, x).cummax(ctx.axis)
        ctx.save_for_backward(index)
        return _RunningMaximum._outer(ctx, values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        inner = _RunningMaximum._inner(ctx, gradient)
        dtype = torch.promote_types(inner.dtype, torch.float32)
        result = torch.zeros_like(inner, dtype=dtype).scatter_add_(ctx.axis, index, inner.to(dtype))
        return _RunningMaximum._outer(ctx, result.to(gradient.dtype)), None, None

    @staticmethod
    def _inner(ctx: Any, x: Tensor) -> Tensor:
        x = x.movedim(-3, -1) if ctx.moved else x
        return x if ctx.towards_start else x.flip(ctx.axis)

    @staticmethod
    def _outer(ctx: Any, x: Tensor) -> Tensor:
        x = x if ctx.towards_start else x.flip(ctx.axis)
        return x.movedim(-1, -3) if ctx.moved else x


# For each pool: the axis of its walk, and whether the walk goes to smaller indices.
WALKS = {top_pool: (-2, False), left_pool: (-1, False), bottom_pool: (-2, True), right_pool: (-1, True)}


def pool_by_doubling(x: Tensor, axis: int, towards_start: bool, longest: int) -> Tensor:
    """A running maximum built from pads, slices and maxima, for formats such as ONNX that have no operator for it.

    After the step of k, every cell contains the maximum of the first 2 k cells of its walk, including itself.

    Args:
        x: (B, c, H, W).
        axis: -2 or -1, the direction of the walk.
        towards_start: whether the walk goes to smaller indices.
        longest: largest number of cells in a walk that is computed correctly.

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

    Two convolutions of half the width, one for each direction, are pooled and added. A convolution restores the full width, the
    input is added through a 1x1 convolution, and one more convolution follows.

    Args:
        channels: input and output channels, even.
        corner: one of ``CORNERS``; it determines the directions.
    """

    def __init__(self, *, channels: int, corner: str) -> None:
        super().__init__()
        if corner not in CORNERS:
            raise ValueError(f"corner is {corner!r}; known are {', '.join(CORNERS)}")
        self.pools = (top_pool, left_pool) if corner == "top_left" else (bottom_pool, right_pool)
        # Both directions read the same input, so one convolution computes both and is split.
        self.directions = nn.Sequential(_conv(channels, channels, 3), nn.ReLU(inplace=True))
        self.merge = _conv(channels // 2, channels, 3)
        self.shortcut = _conv(channels, channels, 1)
        self.output = nn.Sequential(_conv(channels, channels, 3), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to x (B, channels, H, W); the shape does not change."""
        vertical, horizontal = self.directions(x).chunk(2, dim=1)
        pooled = self.pools[0](vertical) + self.pools[1](horizontal)
        return self.output(torch.relu(self.merge(pooled) + self.shortcut(x)))


def _conv(before: int, after: int, size: int) -> nn.Sequential:
    conv = nn.Conv2d(before, after, size, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(after))
