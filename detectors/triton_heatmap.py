"""Gaussian targets of heat maps on a GPU, in one kernel that stores no map (:func:`detectors.heatmap.gaussian_lists`).

Each program draws a part of one object's square. It drops an element if another object of the same class has a higher value there, or
the same value and an earlier position. Every element therefore occurs once, without a search for duplicates. The lists have a fixed
length, so the host does not wait for the device.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from afl.losses.target import PADDING
from afl.losses.triton_launch import interpreted, on_device_of

# Number of cells per program; the time of Triton's interpreter hardly depends on it.
_BLOCK, _BLOCK_INTERPRETED = 256, 4096
# Below this value, 1 - Y is 1 in float32.
_SMALLEST = tl.constexpr(torch.finfo(torch.float32).eps)


def gaussian_lists(
    cells: Tensor,
    radius: Tensor,
    labels: Tensor,
    present: Tensor,
    largest: int,
    num_classes: int,
    height: int,
    width: int,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The same as :func:`detectors.heatmap.gaussian_lists`, with padding among the entries.

    Args:
        largest: upper bound of the radii; the lists have (2 largest + 1)^2 entries for each object.
    """
    maps, batch, count = cells.shape[:3]
    square = (2 * largest + 1) ** 2
    device = cells.device
    positive = torch.full((maps, batch * count), PADDING, dtype=torch.int64, device=device)
    index = torch.full((maps, batch * count * square), PADDING, dtype=torch.int64, device=device)
    scale = torch.zeros(index.shape, device=device)
    block = _BLOCK_INTERPRETED if interpreted() else _BLOCK
    if positive.numel():
        with on_device_of(cells):
            _draw[(positive.numel(), triton.cdiv(square, block))](
                cells.contiguous(),
                radius.float().contiguous(),
                labels.contiguous(),
                present.contiguous().view(torch.uint8),
                positive,
                index,
                scale,
                batch * count,
                count,
                largest,
                num_classes,
                height,
                width,
                BLOCK=block,
            )
    return list(zip(positive, index, scale, strict=True))


@triton.jit
def _value(dx, dy, radius):
    """Height of a Gaussian at a distance in cells from its centre, 0 outside its square."""
    sigma = (2 * radius + 1) / 6
    spread = 2 * sigma * sigma
    dx, dy = dx.to(tl.float32), dy.to(tl.float32)
    value = tl.exp(-(dx * dx) / spread) * tl.exp(-(dy * dy) / spread)
    return tl.where((tl.abs(dx) <= radius) & (tl.abs(dy) <= radius) & (value >= _SMALLEST), value, 0.0)


@triton.jit
def _draw(
    cells,
    radius,
    labels,
    present,
    positive,
    index,
    scale,
    objects,
    count,
    largest,
    num_classes,
    height,
    width,
    BLOCK: tl.constexpr,
):
    """One part of the square of one object in one map.

    Args:
        objects: B * M; count: M.
    """
    item = tl.program_id(0).to(tl.int64)
    own = item % objects
    if tl.load(present + own) != 0:
        label = tl.load(labels + own)
        column, row = tl.load(cells + 2 * item), tl.load(cells + 2 * item + 1)
        side = 2 * largest + 1
        place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        dx, dy = place % side - largest, place // side - largest
        x, y = column + dx, row + dy
        value = _value(dx, dy, tl.load(radius + own))
        kept = (place < side * side) & (value > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
        # Most parts of a square are outside the object's radius.
        if tl.max(kept.to(tl.int32), 0) > 0:
            other = own - own % count
            end = other + count
            while other < end:
                if (tl.load(present + other) != 0) & (tl.load(labels + other) == label) & (other != own):
                    corner = cells + 2 * (item - own + other)
                    theirs = _value(x - tl.load(corner), y - tl.load(corner + 1), tl.load(radius + other))
                    later = other - own + place * 0 > 0
                    kept = kept & ((theirs < value) | ((theirs == value) & later))
                other += 1
            element = ((own // count * height + y) * width + x) * num_classes + label
            slope = kept & (value < 1)
            away = 1 - value
            start = item * side * side
            tl.store(index + start + place, element, mask=slope)
            tl.store(scale + start + place, away * away * away * away, mask=slope)
            tl.store(positive + item + place * 0, element, mask=kept & (value >= 1))
