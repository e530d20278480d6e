"""All elements of a map as plain negatives, in blocks that stay in the cache, with the exceptions erased."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from afl.losses.fused import block_rows
from afl.losses.gradient import computing_type, modulation, negative_log_block
from afl.losses.target import ClassificationTarget
from afl.losses.weighting import ElementWeights

# Elements of a block on a CPU: four float32 buffers of it take 4 MiB, and the calls of operations cost little.
BLOCK = 1 << 18
# Elements in a line of the cache, for any type.
_LINE = 16


@dataclass
class NegativeBlock:
    """Rows [start, stop) of a map with every element a plain negative; buffers (n, C) may be overwritten.

    ``g`` is |p - y|, ``factor`` is W g^gamma, ``loss`` is W v; ``spare`` is free.
    """

    start: int
    stop: int
    g: Tensor
    factor: Tensor
    loss: Tensor
    spare: Tensor


def negative_blocks(
    logits: Tensor, target: ClassificationTarget, weights: ElementWeights, scale: float | Tensor
) -> Iterator[NegativeBlock]:
    """All plain negatives of a map, block by block, in the computing type, W times ``scale`` (scalar).

    Exceptions have a factor of exactly 0: the target's positives, its scaled negatives, ignored
    locations and unverified classes.
    """
    locations, classes = logits.shape
    rows = min(block_rows(classes, logits.device, BLOCK), max(locations, 1))
    dtype = computing_type(logits.dtype)
    # One element more than a block, where exceptions outside the block are written. Every buffer starts on a cache line.
    length = -(-(rows * classes + 1) // _LINE) * _LINE
    buffers = torch.empty((4, length), dtype=dtype, device=logits.device)
    g, factor, loss, spare = (buffer[: rows * classes].view(rows, classes) for buffer in buffers)
    eraser = Eraser(target, locations, rows)
    unverified = None if target.verified is None else ~target.verified
    shift = None if target.shift is None else target.shift.to(dtype)
    slots = None if weights.slot is None else _Slots(weights, rows)

    for number, start in enumerate(range(0, locations, rows)):
        stop = min(start + rows, locations)
        if stop - start < rows:
            g, factor, loss, spare = (buffer[: stop - start] for buffer in (g, factor, loss, spare))
        z = logits[start:stop]
        if shift is not None:
            z = torch.add(z, shift, out=spare)
        elif z.dtype != dtype:
            z = spare.copy_(z)

        absent = None if unverified is None else unverified[target.image[start:stop]]
        # Finding the largest logit is free on a CPU only.
        largest = z.amax().item() if z.device.type == "cpu" and z.numel() else math.inf
        if not math.isfinite(largest):
            # A logit that is NaN or infinite would pass through a factor of 0.
            z = spare.copy_(z)
            eraser.erase_all(buffers[3], z, number, absent)
        torch.sigmoid(z, out=g)
        modulation(g, weights.gamma, out=factor)
        if weights.negative_class is not None:
            factor.mul_(weights.negative_class)
        if weights.negative_location is not None:
            factor.mul_(weights.negative_location[start:stop, None])
        if weights.negative_element is not None:
            factor.mul_(weights.negative_element[start:stop])
        if weights.slot is not None:
            slots.weigh(factor, number)
        if weights.negative_bin is not None:
            factor.mul_(weights_by_size(weights.negative_bin, g))
        eraser.erase_all(buffers[1], factor, number, absent)
        if isinstance(scale, Tensor) or scale != 1.0:
            factor.mul_(scale)
        torch.mul(factor, negative_log_block(z, g, largest, out=loss), out=loss)
        yield NegativeBlock(start, stop, g=g, factor=factor, loss=loss, spare=spare)


def weights_by_size(weight: Tensor, g: Tensor) -> Tensor:
    """Weights of elements with gradients of the sizes ``g``, of g's shape, from those of M equal bins of [0, 1]."""
    # A NaN has some weight, and its loss stays NaN.
    place = (g * len(weight)).clamp_(max=len(weight) - 1).nan_to_num_(nan=0.0).to(torch.int32)
    return weight.index_select(0, place.view(-1)).view(g.shape)


class _Slots:
    """Multiplies the rows of a block that have a slot by its weights.

    Args:
        weights: with ``slot`` and ``negative_slot``.
        rows: locations of a block.
    """

    def __init__(self, weights: ElementWeights, rows: int) -> None:
        self.slot, self.weight, self.rows = weights.slot, weights.negative_slot, rows
        self.found: Tensor | None = None
        if Eraser.on_host and self.slot.device.type == "cpu":
            self.found = (self.slot >= 0).nonzero().squeeze(1)
            starts = torch.arange(0, len(self.slot) + rows, rows)
            self.bounds = torch.searchsorted(self.found, starts).tolist()

    def weigh(self, block: Tensor, number: int) -> None:
        """Weigh block ``number``, (n, C), in place."""
        start = number * self.rows
        if self.found is None:
            slot = self.slot[start : start + len(block)]
            own = self.weight[slot.clamp(min=0)]
            block.mul_(torch.where((slot >= 0).unsqueeze(1), own, 1.0))
            return
        found = self.found[slice(*self.bounds[number : number + 2])]
        if len(found):
            row = found - start
            block.index_copy_(0, row, block[row] * self.weight[self.slot[found]])


class Eraser:
    """Erases the elements that the dense pass must not count, block by block: listed elements and ignored locations.

    Args:
        target: of the map.
        locations: R.
        rows: locations of a block.
        filler: the value that erases an element.
    """

    # Whether a CPU sorts the exceptions into blocks; on other devices reading the bounds would wait for the device.
    on_host = True

    def __init__(self, target: ClassificationTarget, locations: int, rows: int, filler: float = 0.0) -> None:
        self.filler = filler
        lists = [
            index for index in (target.positive, target.negative_index) if index is not None and index.numel()
        ]
        self.index = torch.cat(lists) if len(lists) > 1 else next(iter(lists), None)
        self.rows, self.block = rows, rows * target.num_classes
        self.ignored, self.ignored_rows = target.ignored, None
        self.bounds: list[int] | None = None
        on_host = self.on_host and target.positive.device.type == "cpu"
        starts = torch.arange(0, locations + rows, rows) if on_host else None
        if lists and on_host:
            self.index = self.index.sort().values
            self.bounds = torch.searchsorted(self.index, starts * target.num_classes).tolist()
        if on_host and target.ignored is not None:
            self.ignored_rows = target.ignored.nonzero().squeeze(1)
            self.row_bounds = torch.searchsorted(self.ignored_rows, starts).tolist()

    def erase_all(self, buffer: Tensor, block: Tensor, number: int, absent: Tensor | None) -> None:
        """Erase the exceptions of block ``number``, (n, C), which starts the buffer, and the elements of ``absent`` (n, C)."""
        self.erase(buffer, number, block.numel())
        self.erase_rows(block, number)
        if absent is not None:
            block.masked_fill_(absent, self.filler)

    def erase(self, buffer: Tensor, number: int, size: int) -> None:
        """Erase the exceptions of block ``number``, whose ``size`` elements start the buffer."""
        if self.index is None:
            return
        if self.bounds is not None:
            index = self.index[self.bounds[number] : self.bounds[number + 1]] - number * self.block
        else:
            # Without waiting for the device: the exceptions of other blocks go to the element behind this one.
            index = self.index - number * self.block
            index = torch.where((index >= 0) & (index < size), index, buffer.numel() - 1)
        if index.numel():
            buffer.index_fill_(0, index, self.filler)

    def erase_rows(self, block: Tensor, number: int) -> None:
        """Erase the ignored locations of block ``number``, (n, C)."""
        if self.ignored_rows is not None:
            first, last = self.row_bounds[number : number + 2]
            if last > first:
                block.index_fill_(0, self.ignored_rows[first:last] - number * self.rows, self.filler)
        elif self.ignored is not None:
            start = number * self.rows
            block.masked_fill_(self.ignored[start : start + len(block), None], self.filler)
