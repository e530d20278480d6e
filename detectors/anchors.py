"""Anchor boxes, their matching with objects, and box deltas (Faster R-CNN, 3.1; RetinaNet, 4)."""

from __future__ import annotations

import math
from importlib import import_module

import torch
from torch import Tensor

from afl.losses.fused import uses_triton
from detectors.boxes import blocks_of_objects, box_area, cell_centres, pairwise_intersection, pairwise_iou

MAX_LOG_SCALE = math.log(1000 / 16)  # a decoded side grows at most 62.5-fold: exp cannot overflow

BACKGROUND, BETWEEN = -1, -2
LOW, HIGH = 0.4, 0.5  # IoU below which an anchor is background, and from which it is positive


def base_anchors(size: float, ratios: tuple[float, ...], scales: tuple[float, ...]) -> Tensor:
    """Anchors around the origin: (len(ratios) * len(scales), 4) xyxy, area (size * scale)^2, ratio height / width."""
    sides = [(size * s / math.sqrt(r), size * s * math.sqrt(r)) for r in ratios for s in scales]
    return torch.tensor([[-w / 2, -h / 2, w / 2, h / 2] for w, h in sides])


def grid_anchors(base: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Anchors of one level, (height * width * A, 4), centred on each location of the map, row by row."""
    centre = cell_centres(height, width, stride, base.device).repeat(1, 2).unsqueeze(1)
    return (centre + base).reshape(-1, 4)


def match_anchors(anchors: Tensor, boxes: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Match the anchors of a whole batch with objects (RetinaNet, 4).

    An anchor is positive if its best IoU is at least ``HIGH``, background if it is below ``LOW``, and ignored in between. The best
    anchors of an object are also positive for any smaller IoU above zero. If several objects have the same IoU, the first one is
    chosen.

    Args:
        anchors: (A, 4), none of them empty; boxes: (B, M, 4); valid: (B, M) bool.

    Returns:
        match: (B, A) int64, position of the object in its image, ``BACKGROUND`` or ``BETWEEN``.
        overlap: (B, A), the best IoU.
    """
    if uses_triton(boxes):
        kernels = import_module("detectors.triton_matching")
        return kernels.match_anchors(anchors, boxes, valid, LOW, HIGH, (BACKGROUND, BETWEEN))
    # Contiguous coordinates are faster to read.
    anchors = anchors.t().contiguous().t()
    shape = (len(boxes), len(anchors))
    best = torch.zeros(shape, device=anchors.device)
    match = torch.zeros(shape, dtype=torch.int64, device=anchors.device)
    kept = torch.zeros(shape, dtype=torch.bool, device=anchors.device)
    for images, first, some in blocks_of_objects(boxes, valid, len(anchors)):
        iou = pairwise_iou(some, anchors)
        overlap, which = iou.max(1)
        match[images] = torch.where(overlap > best[images], which + first, match[images])
        best[images] = torch.maximum(best[images], overlap)
        best_of_object = iou.amax(2, keepdim=True)
        # The difference is 0 at the best anchors and negative elsewhere; no IoU equals 2.
        below = iou.sub_(torch.where(best_of_object > 0, best_of_object, 2.0))
        kept[images] |= below.amax(1) == 0
    other = torch.where(best < LOW, BACKGROUND, BETWEEN)
    return torch.where((best >= HIGH) | kept, match, other), best


def anchors_in_ignored(anchors: Tensor, boxes: Tensor, ignored: Tensor) -> Tensor:
    """(B, A) bool: anchors with more than half of their area inside one ignored region."""
    inside = torch.zeros(len(boxes), len(anchors), dtype=torch.bool, device=anchors.device)
    area = box_area(anchors)
    for images, _, some in blocks_of_objects(boxes, ignored, len(anchors)):
        inside[images] |= (pairwise_intersection(some, anchors) / area > 0.5).any(1)
    return inside


def encode_deltas(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Encode boxes (N, 4) relative to their anchors (N, 4), both xyxy, as (N, 4) dx, dy, log dw, log dh."""
    size, box_size = anchors[:, 2:] - anchors[:, :2], (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-6)
    shift = (boxes[:, :2] + boxes[:, 2:] - anchors[:, :2] - anchors[:, 2:]) / 2
    return torch.cat([shift / size, (box_size / size).log()], 1)


def decode_deltas(anchors: Tensor, deltas: Tensor) -> Tensor:
    """Decode deltas (..., 4) of anchors (..., 4) to boxes (..., 4): the inverse of :func:`encode_deltas`.

    The logarithm of the growth is limited to ``MAX_LOG_SCALE``.
    """
    low, high = anchors[..., :2], anchors[..., 2:]
    size, centre = high - low, (low + high) / 2
    centre = centre + deltas[..., :2] * size
    half = deltas[..., 2:].clamp(max=MAX_LOG_SCALE).exp() * size / 2
    return torch.cat([centre - half, centre + half], -1)
