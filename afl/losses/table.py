"""Plain negatives of bfloat16 logits on a CPU, by table lookup.

A bfloat16 number has 65,536 values. If no weight depends on the element, the loss and the gradient of a plain negative depend
only on its logit. They are computed once for every value, in float32 and including the gate, and then looked up.

One lookup finds both: an entry is the loss as float64, whose last 16 bits are replaced by the gradient as bfloat16. That changes
the loss by less than 2^-36 of itself.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from afl.losses.fused import block_rows
from afl.losses.gradient import MODERATE, gradient_size, inverse_gate, modulation, negative_log
from afl.losses.negatives import Eraser
from afl.losses.target import ClassificationTarget
from afl.losses.weighting import ElementWeights

_VALUES = 1 << 16
# Elements of a block: an int32 and a float64 buffer of it take 3 MiB.
BLOCK = 1 << 18


def serves(
    logits: Tensor, target: ClassificationTarget, weights: ElementWeights, strength: float | Tensor
) -> bool:
    """Whether the plain negatives of this map can be looked up, and there are enough of them."""
    return (
        logits.device.type == "cpu"
        and logits.dtype == torch.bfloat16
        and logits.numel() >= _VALUES
        and isinstance(strength, float)
        and not isinstance(weights.gamma, Tensor)
        and weights.negative_class is None
        and weights.negative_location is None
        and weights.negative_element is None
        and weights.slot is None
        and weights.negative_bin is None
        and target.shift is None
    )


def dense_negatives(
    logits: Tensor,
    target: ClassificationTarget,
    weights: ElementWeights,
    scale: float,
    strength: float,
    gradient: Tensor | None,
) -> Tensor:
    """Sum over the plain negatives of scale A v, a float64 scalar; fills ``gradient`` (R, C) unless it is None.

    Args:
        scale: factor of every element.
        strength: of the gate, for gradients without ``scale``.
    """
    locations, classes = logits.shape
    rows = min(block_rows(classes, logits.device, BLOCK), locations)
    # One entry after the block, where exceptions outside the block are written.
    buffer = torch.empty(rows * classes + 1, dtype=torch.int32)
    found = torch.empty(rows * classes, dtype=torch.float64)
    entries = _entries(weights.gamma, scale, strength)
    eraser = Eraser(target, locations, rows, filler=_VALUES)
    unverified = None if target.verified is None else ~target.verified
    total = torch.zeros((), dtype=torch.float64)
    bits = logits.detach().view(torch.uint16)
    slopes = None if gradient is None else gradient.view(torch.int16).view(-1)
    for number, start in enumerate(range(0, locations, rows)):
        stop = min(start + rows, locations)
        size = (stop - start) * classes
        if number == 0 or stop == locations:
            index, entry = buffer[:size], found[:size]
            block, entry_bits = index.view(stop - start, classes), entry.view(torch.int64)
        block.copy_(bits[start:stop])
        absent = None if unverified is None else unverified[target.image[start:stop]]
        eraser.erase_all(buffer, block, number, absent)
        torch.index_select(entries, 0, index, out=entry)
        total += entry.sum()
        if slopes is not None:
            # From int64 to int16 the last 16 bits remain.
            slopes[start * classes : stop * classes].copy_(entry_bits)
    return total


def _entries(gamma: float, scale: float, strength: float) -> Tensor:
    """(65,537,) float64, loss and gradient of all values, by their bits; the last entry is that of an exception, 0."""
    entry, slope = _terms(gamma)
    if strength == 0.0:
        entry, slope = entry * scale, slope * scale
    else:
        divisor = inverse_gate(slope, strength, scale)
        entry, slope = entry / divisor, slope / divisor
    # The last 16 bits of a number are the first in memory.
    entry.view(torch.bfloat16)[::4].copy_(slope)
    return entry


@cache
def _terms(gamma: float) -> tuple[Tensor, Tensor]:
    """(65,537,) loss, float64, and gradient, float32, of all values without weights; zeros for an exception."""
    z = torch.arange(_VALUES, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()
    g = torch.sigmoid(z)
    factor = modulation(g, gamma)
    loss = factor * torch.where(z <= MODERATE, -torch.log1p(-g), negative_log(z))
    slope = gradient_size(g, factor, loss, gamma)
    zero = z.new_zeros(1)
    return torch.cat([loss, zero]).double(), torch.cat([slope, zero])
