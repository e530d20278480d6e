"""Anchor boxes, matching them with objects, and the box deltas (Faster R-CNN, 3.1; RetinaNet, 4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from detectors.boxes import box_area, pairwise_intersection, pairwise_iou

MAX_LOG_SCALE = math.log(1000 / 16)  # a decoded side grows at most 62.5-fold: exp cannot overflow

BACKGROUND, BETWEEN = -1, -2


def base_anchors(size: float, ratios: tuple[float, ...], scales: tuple[float, ...]) -> Tensor:
    """Anchors around the origin: (len(ratios) * len(scales), 4) xyxy, area (size * scale)^2, ratio height / width."""
    sides = [(size * s / math.sqrt(r), size * s * math.sqrt(r)) for r in ratios for s in scales]
    return torch.tensor([[-w / 2, -h / 2, w / 2, h / 2] for w, h in sides])


def grid_anchors(base: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Anchors of one level, (height * width * A, 4), centred on the middle of each cell, row by row."""
    device = base.device
    y, x = torch.meshgrid(
        (torch.arange(height, device=device) + 0.5) * stride,
        (torch.arange(width, device=device) + 0.5) * stride,
        indexing="ij",
    )
    centre = torch.stack([x, y, x, y], -1).reshape(-1, 1, 4)
    return (centre + base).reshape(-1, 4)


def match_anchors(
    anchors: Tensor,
    boxes: Tensor,
    valid: Tensor,
    *,
    low: float = 0.4,
    high: float = 0.5,
    keep_best: bool = True,
) -> tuple[Tensor, Tensor]:
    """Which object each anchor stands for, for a whole batch.

    An anchor whose best IoU is at least ``high`` is positive, below ``low`` it is background, in between it takes no
    part. With ``keep_best`` the best anchors of an object are positive however small that IoU is (but not zero).

    Args:
        anchors: (A, 4); boxes: (B, M, 4); valid: (B, M) bool.

    Returns:
        match (B, A) int64: position of the object in its image, ``BACKGROUND`` or ``BETWEEN``; and the best IoU (B, A).
    """
    batch, count = valid.shape
    if count == 0:
        shape = (batch, anchors.shape[0])
        return torch.full(shape, BACKGROUND, device=anchors.device), torch.zeros(shape, device=anchors.device)
    iou = pairwise_iou(boxes, anchors.expand(batch, -1, -1))
    iou = torch.where(valid.unsqueeze(-1), iou, -1.0)
    best, match = iou.max(1)
    chosen = best >= high
    if keep_best:
        best_of_object = iou.amax(2, keepdim=True)
        chosen = chosen | ((iou == best_of_object) & (best_of_object > 0)).any(1)
    background = torch.where(best < low, BACKGROUND, BETWEEN)
    return torch.where(chosen, match, background), best.clamp(min=0)


def anchors_in_ignored(anchors: Tensor, boxes: Tensor, ignored: Tensor) -> Tensor:
    """(B, A) bool: anchors with more than half of their area inside one ignored region."""
    if boxes.shape[1] == 0:
        return torch.zeros(boxes.shape[0], anchors.shape[0], dtype=torch.bool, device=anchors.device)
    inside = pairwise_intersection(boxes, anchors.expand(boxes.shape[0], -1, -1)) / box_area(anchors)
    return ((inside > 0.5) & ignored.unsqueeze(-1)).any(1)


def encode_deltas(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Anchors (N, 4) and their boxes (N, 4), xyxy, to (N, 4) dx, dy, log dw, log dh relative to the anchor."""
    size, box_size = anchors[:, 2:] - anchors[:, :2], (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-6)
    shift = (boxes[:, :2] + boxes[:, 2:] - anchors[:, :2] - anchors[:, 2:]) / 2
    return torch.cat([shift / size, (box_size / size).log()], 1)


def decode_deltas(anchors: Tensor, deltas: Tensor) -> Tensor:
    """The inverse of :func:`encode_deltas`; growth is limited to ``MAX_LOG_SCALE``."""
    size, centre = anchors[:, 2:] - anchors[:, :2], (anchors[:, :2] + anchors[:, 2:]) / 2
    centre = centre + deltas[:, :2] * size
    half = deltas[:, 2:].clamp(max=MAX_LOG_SCALE).exp() * size / 2
    return torch.cat([centre - half, centre + half], 1)
