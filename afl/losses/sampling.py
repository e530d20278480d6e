"""Shared code of hard sampling: the hardness of locations and elements, and the selection of the hardest.

Hardness is the weighted loss W alpha_t v of the chain so far, without a gate. On anchors and grids
a *location* is the sample, as a region is in a two-stage detector; on heat maps it is the single *element*,
because there one location belongs to the neighbourhoods of objects of several classes. The dense part is read
block by block, the selection is one stable sort, and no step waits for the device or loops over images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module

import torch
from torch import Tensor

from afl.losses.fused import uses_triton
from afl.losses.gradient import alpha_balance, computing_type
from afl.losses.negatives import negative_blocks
from afl.losses.primitive import positives, scaled_negatives
from afl.losses.target import PADDING, ClassificationTarget
from afl.losses.weighting import ElementWeights, positive_logits

# The element loss without any weighting, -ln(1 - p) of a negative.
CROSS_ENTROPY = ElementWeights(alpha=-1.0, gamma=0.0)


def location_losses(logits: Tensor, target: ClassificationTarget, weights: ElementWeights) -> Tensor:
    """(R,) sum over classes of the weighted losses at each location; -inf where it is ignored."""
    weights = replace(weights, gate=None)
    if uses_triton(logits):
        total, _ = import_module("afl.losses.triton_rows").losses_of_locations(logits, target, weights)
    else:
        total = _per_location(logits, target)
        for start, stop, loss in _plain_losses(logits, target, weights):
            total[start:stop] = loss.sum(1)
    hits = positives(positive_logits(logits, target), target, weights)
    for exceptions in (hits, scaled_negatives(logits, target, weights)):
        if exceptions is not None and total.numel():
            loss = exceptions.weight * exceptions.alpha * exceptions.loss
            location = torch.div(exceptions.index, target.num_classes, rounding_mode="floor")
            total.index_add_(0, location, torch.where(exceptions.valid, loss, 0.0).to(total.dtype))
    return _without_ignored(total, target)


def largest_negative_losses(logits: Tensor, target: ClassificationTarget, weights: ElementWeights) -> Tensor:
    """(R,) largest weighted loss of a negative element at each location; -inf where it is ignored."""
    weights = replace(weights, gate=None)
    if uses_triton(logits):
        _, largest = import_module("afl.losses.triton_rows").losses_of_locations(logits, target, weights)
    else:
        largest = _per_location(logits, target)
        for start, stop, loss in _plain_losses(logits, target, weights):
            largest[start:stop] = loss.amax(1)
    scaled = scaled_negatives(logits, target, weights)
    if scaled is not None and largest.numel():
        loss = torch.where(scaled.valid, scaled.weight * scaled.alpha * scaled.loss, 0.0)
        location = torch.div(scaled.index, target.num_classes, rounding_mode="floor")
        largest.scatter_reduce_(0, location, loss.to(largest.dtype), "amax")
    return _without_ignored(largest, target)


def negative_losses(logits: Tensor, target: ClassificationTarget, weights: ElementWeights) -> Tensor:
    """(R, C) weighted losses of the negatives, exactly 0 at positives and at elements that take no part.

    One tensor of the logits' size, for heat maps; free it before the gradient is computed.
    """
    weights = replace(weights, gate=None)
    losses = torch.empty(logits.shape, dtype=computing_type(logits.dtype), device=logits.device)
    for start, stop, loss in _plain_losses(logits, target, weights):
        losses[start:stop] = loss
    scaled = scaled_negatives(logits, target, weights)
    if scaled is not None and losses.numel():
        loss = torch.where(scaled.valid, scaled.weight * scaled.alpha * scaled.loss, 0.0)
        # Their own places hold zeros, and padding adds another zero to the first element.
        losses.view(-1).index_add_(0, scaled.index, loss.to(losses.dtype))
    return losses


def hardest(hardness: Tensor, group: Tensor, quota: Tensor) -> Tensor:
    """Which N candidates are among the ``quota`` hardest of their group; of equals, the first.

    Args:
        hardness: (N,), -inf where a candidate must not be chosen.
        group: (N,) int64 in [0, G), for example the image.
        quota: (G,) how many to choose in each group.

    Returns:
        (N,) bool.
    """
    order = hardness.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]
    size = torch.zeros_like(quota, dtype=torch.int64).index_add_(0, group, torch.ones_like(group))
    owner = group[order]
    rank = torch.arange(len(order), device=order.device) - (size.cumsum(0) - size)[owner]
    chosen = torch.empty_like(order, dtype=torch.bool)
    chosen[order] = rank < quota[owner]
    return chosen & (hardness > -torch.inf)


def keep_hardest_elements(
    logits: Tensor, target: ClassificationTarget, weights: ElementWeights, quota: Tensor, most: int
) -> ElementWeights:
    """``weights`` without the negatives that are not among the ``quota`` hardest of their image.

    The k hardest elements are all at the k locations with the hardest worst element. Only the elements of those locations are
    sorted and get a weight each, so nothing has the size of the map.

    Args:
        logits: (R, C) of a heat map.
        quota: (B,) how many to keep in each image.
        most: an upper bound of the sum of ``quota``, known without asking the device.
    """
    locations, classes = logits.shape
    worst = largest_negative_losses(logits, target, weights)
    row = nonzero_padded(hardest(worst, target.image, quota), most)
    found, real = row.clamp(min=0), row >= 0
    # One location more than the map, where padding is written.
    slot = torch.full((locations + 1,), -1, dtype=torch.int32, device=logits.device)
    number = torch.arange(len(row), dtype=torch.int32, device=logits.device)
    slot[torch.where(real, row, locations)] = number
    slot = slot[:-1]
    part = _locations_of_target(target, found, slot)
    losses = negative_losses(logits[found], part, _locations_of_weights(weights, found))
    losses = torch.where((losses > 0) & real.unsqueeze(1), losses, -torch.inf)
    chosen = hardest(losses.flatten(), part.image.repeat_interleave(classes), quota).view(-1, classes)
    kept = weights.times(negative_location=(slot >= 0).to(losses.dtype))
    return kept.times_at(slot, chosen.to(losses.dtype))


def _locations_of_target(target: ClassificationTarget, row: Tensor, slot: Tensor) -> ClassificationTarget:
    """The part of a target that says which elements of the locations ``row`` (n,) are negatives, and their scales.

    Args:
        slot: (R,) position in ``row`` of each location, -1 where it is not listed.
    """

    def moved(index: Tensor) -> Tensor:
        location = torch.div(index.clamp(min=0), target.num_classes, rounding_mode="floor")
        own = torch.where(index >= 0, slot[location].long(), -1)
        return torch.where(own >= 0, own * target.num_classes + index % target.num_classes, PADDING)

    return ClassificationTarget(
        num_classes=target.num_classes,
        image=target.image[row],
        num_images=target.num_images,
        positive=moved(target.positive),
        ignored=None if target.ignored is None else target.ignored[row],
        negative_index=None if target.negative_index is None else moved(target.negative_index),
        negative_scale=target.negative_scale,
        verified=target.verified,
        shift=target.shift,
    )


def _locations_of_weights(weights: ElementWeights, row: Tensor) -> ElementWeights:
    """The weights of the negatives at the locations ``row`` (n,)."""

    def rows(weight: Tensor | None) -> Tensor | None:
        return None if weight is None else weight[row]

    return replace(
        weights,
        positive=None,
        negative_location=rows(weights.negative_location),
        negative_element=rows(weights.negative_element),
        slot=rows(weights.slot),
    )


def positive_locations(target: ClassificationTarget) -> Tensor:
    """(R,) bool, locations with a positive element."""
    found = torch.zeros(target.num_locations + 1, dtype=torch.bool, device=target.image.device)
    found[torch.where(target.is_positive, target.positive_location, target.num_locations)] = True
    return found[:-1]


def positives_per_image(target: ClassificationTarget) -> Tensor:
    """(B,) int64 number of positives of each image."""
    count = torch.zeros(target.num_images, dtype=torch.int64, device=target.image.device)
    if target.num_locations:
        image = target.image[target.positive_location]
        count.index_add_(0, image, target.is_positive.to(torch.int64))
    return count


def plain_negatives_per_image(logits: Tensor, target: ClassificationTarget) -> Tensor:
    """(B,) float64 number of elements that are neither positive nor listed, ignored or unverified."""
    classes, device = target.num_classes, target.image.device
    kept = torch.ones(target.num_locations, dtype=torch.float64, device=device)
    if target.ignored is not None:
        kept = kept * ~target.ignored
    checked = kept * (classes if target.verified is None else target.verified.sum(1)[target.image])
    count = torch.zeros(target.num_images, dtype=torch.float64, device=device).index_add_(
        0, target.image, checked
    )
    if not target.num_locations:
        return count
    location = target.positive_location
    counted = target.is_positive * kept[location]
    if target.verified is not None:
        counted = counted * target.verified[target.image[location], target.positive_class]
    count.index_add_(0, target.image[location], -counted)
    near = scaled_negatives(logits, target, CROSS_ENTROPY)
    if near is not None:
        location = torch.div(near.index, classes, rounding_mode="floor")
        count.index_add_(0, target.image[location], -near.valid.to(count.dtype))
    return count


def negatives_wanted(target: ClassificationTarget, ratio: float, minimum: int) -> Tensor:
    """(B,) int64: ``ratio`` negatives for each positive of an image, rounded down, at least ``minimum``."""
    return (ratio * positives_per_image(target)).floor().to(torch.int64).clamp(min=minimum)


def check_ratio(ratio: float, minimum: int) -> None:
    """Raise ValueError if ``ratio`` or ``minimum`` is negative."""
    if ratio < 0 or minimum < 0:
        raise ValueError(f"ratio is {ratio} and minimum {minimum}, but neither must be negative.")


def on_host(tensor: Tensor) -> bool:
    """Whether values can be read without waiting for a device."""
    return tensor.device.type == "cpu"


def _plain_losses(
    logits: Tensor, target: ClassificationTarget, weights: ElementWeights
) -> Iterator[tuple[int, int, Tensor]]:
    for block in negative_blocks(logits, target, weights, alpha_balance(0.0, weights.alpha)):
        yield block.start, block.stop, block.loss


def _per_location(logits: Tensor, target: ClassificationTarget) -> Tensor:
    return torch.zeros(target.num_locations, dtype=computing_type(logits.dtype), device=logits.device)


def _without_ignored(hardness: Tensor, target: ClassificationTarget) -> Tensor:
    return hardness if target.ignored is None else hardness.masked_fill(target.ignored, -torch.inf)


def nonzero_padded(mask: Tensor, size: int) -> Tensor:
    """Positions of the true entries of a flat bool mask, (n,) int64, padded with ``PADDING`` on an accelerator.

    On an accelerator the result always has ``size`` entries, or as many as the mask, because counting them would make the host
    wait for the device. ``size`` must be an upper bound of their number. On a CPU the result has no padding.
    """
    if on_host(mask):
        return mask.nonzero().flatten()
    return torch.nonzero_static(mask, size=min(size, mask.numel()), fill_value=PADDING).flatten()
