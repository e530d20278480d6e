"""Weights of the other classes' negatives at the locations of objects, for losses in which classes compete.

In a sigmoid head classes compete in one way only: a positive of class i is a negative of all other classes. A factor W_ij on those
negatives says how hard class j is pushed down by an object of class i. Anchors and grids: at every positive location. Heat maps:
at peaks, one per object; the pixels around a peak belong to no object and keep weight 1, so the effect is small. If two objects
share a location, the larger weight applies.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from afl.losses.fused import block_rows
from afl.losses.gradient import computing_type
from afl.losses.target import ClassificationTarget
from afl.losses.weighting import ElementWeights

# Elements of a block on a CPU.
_BLOCK = 1 << 18

Factor = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Logits (n, C) at objects of the classes (n,) in the images (n,) to the weights (n, C) of the negatives there."""


def weighed_at_objects(
    logits: Tensor, target: ClassificationTarget, weights: ElementWeights, factor: Factor
) -> ElementWeights:
    """``weights`` with the negatives at every positive location multiplied by ``factor`` of the logits there.

    Keeps one row of C weights for each positive, none for the other locations.
    """
    locations, classes = logits.shape
    count = len(target.positive)
    if classes == 1 or not locations or not count:
        return weights
    number = torch.arange(count, dtype=torch.int32, device=logits.device)
    # One location more than the map, where padding is written.
    at = torch.where(target.is_positive, target.positive_location, locations)
    first = torch.full((locations + 1,), count, dtype=torch.int32, device=logits.device)
    first.scatter_reduce_(0, at, number, "amin")
    table = torch.zeros((count + 1, classes), dtype=computing_type(logits.dtype), device=logits.device)
    row = torch.where(target.is_positive, first[at], count).long()
    size = block_rows(classes, logits.device, _BLOCK)
    shift = 0.0 if target.shift is None else target.shift.to(table.dtype)
    parts = (tensor.split(size) for tensor in (row, target.positive_location, target.positive_class))
    for into, location, label in zip(*parts, strict=True):
        own = factor(logits[location].to(table.dtype) + shift, label, target.image[location])
        table.scatter_reduce_(0, into.unsqueeze(1).expand_as(own), own, "amax")
    slot = torch.where(first[:-1] < count, first[:-1], -1)
    return weights.times_at(slot, table[:count])


def shifted_cross_entropy(z: Tensor, factor: Tensor) -> Tensor:
    """S / (1 - p + S p), by which the gradient of -ln(1 - sigmoid(z + ln S)) differs from that of -ln(1 - sigmoid(z)).

    It is S where p is small, and never makes a gradient larger than 1, however large S is.
    """
    return factor / (torch.sigmoid(-z) + factor * torch.sigmoid(z))
