"""Matching of anchors with objects on a GPU in two kernels, without a table of all pairs (:mod:`detectors.anchors`).

The first kernel finds the best object of each anchor and the best IoU of each object. The second compares the anchors with that best
IoU. Both round as torch's operations do, so the results are bit-identical.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from afl.losses.triton_launch import interpreted, on_device_of

# Number of anchors per program; the time of Triton's interpreter hardly depends on it.
_BLOCK, _BLOCK_INTERPRETED = 256, 1 << 14
# A fused multiply-add would round once where torch rounds twice.
_OPTIONS = {"enable_fp_fusion": False}


def match_anchors(
    anchors: Tensor, boxes: Tensor, valid: Tensor, low: float, high: float, names: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The same as :func:`detectors.anchors.match_anchors`.

    Args:
        low, high: largest IoU of background, exclusive, and smallest of a positive anchor.
        names: values for background and for ignored anchors.
    """
    batch, count, places = len(boxes), boxes.shape[1], len(anchors)
    best = torch.zeros(batch, places, device=boxes.device)
    match = torch.zeros(batch, places, dtype=torch.int64, device=boxes.device)
    top = torch.zeros(batch, count, device=boxes.device)
    data = anchors.float().contiguous(), boxes.float().contiguous(), valid.contiguous().view(torch.uint8)
    block = _BLOCK_INTERPRETED if interpreted() else _BLOCK
    grid = (triton.cdiv(places, block), batch)
    with on_device_of(boxes):
        _best[grid](*data, best, match, top, places, count, BLOCK=block, **_OPTIONS)
        _decide[grid](*data, best, match, top, places, count, low, high, *names, BLOCK=block, **_OPTIONS)
    return match, best


@triton.jit
def _iou(anchors, boxes, place, inside, item):
    """IoU of the anchors at ``place`` with the box ``item``."""
    ax1 = tl.load(anchors + 4 * place, mask=inside, other=0.0)
    ay1 = tl.load(anchors + 4 * place + 1, mask=inside, other=0.0)
    ax2 = tl.load(anchors + 4 * place + 2, mask=inside, other=0.0)
    ay2 = tl.load(anchors + 4 * place + 3, mask=inside, other=0.0)
    bx1, by1 = tl.load(boxes + 4 * item), tl.load(boxes + 4 * item + 1)
    bx2, by2 = tl.load(boxes + 4 * item + 2), tl.load(boxes + 4 * item + 3)
    width = tl.maximum(tl.minimum(ax2, bx2) - tl.maximum(ax1, bx1), 0.0)
    height = tl.maximum(tl.minimum(ay2, by2) - tl.maximum(ay1, by1), 0.0)
    shared = width * height
    own = tl.maximum(ax2 - ax1, 0.0) * tl.maximum(ay2 - ay1, 0.0)
    other = tl.maximum(bx2 - bx1, 0.0) * tl.maximum(by2 - by1, 0.0)
    return tl.div_rn(shared, tl.maximum(other + own - shared, 1e-9))


@triton.jit
def _best(anchors, boxes, valid, best, match, top, places, count, BLOCK: tl.constexpr):
    """Best IoU and first best object of each anchor of an image; best IoU of each of its objects."""
    image = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < places
    highest = tl.zeros([BLOCK], tl.float32)
    chosen = tl.zeros([BLOCK], tl.int64)
    item = image * count
    end = item + count
    while item < end:
        if tl.load(valid + item) != 0:
            iou = tl.where(inside, _iou(anchors, boxes, place, inside, item), 0.0)
            chosen = tl.where(iou > highest, place * 0 + (item - image * count), chosen)
            highest = tl.maximum(highest, iou)
            tl.atomic_max(top + item, tl.max(iou, 0))
        item += 1
    tl.store(best + image * places + place, highest, mask=inside)
    tl.store(match + image * places + place, chosen, mask=inside)


@triton.jit
def _decide(
    anchors,
    boxes,
    valid,
    best,
    match,
    top,
    places,
    count,
    low,
    high,
    background,
    between,
    BLOCK: tl.constexpr,
):
    """Replace the object of anchors that are not positive by ``background`` or ``between``."""
    image = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < places
    highest = tl.load(best + image * places + place, mask=inside, other=0.0)
    kept = highest >= high
    item = image * count
    end = item + count
    while item < end:
        largest = tl.load(top + item)
        if largest > 0:
            kept = kept | (_iou(anchors, boxes, place, inside, item) == largest)
        item += 1
    own = tl.load(match + image * places + place, mask=inside, other=0)
    other = tl.where(highest < low, background, between).to(tl.int64)
    tl.store(match + image * places + place, tl.where(kept, own, other), mask=inside)
