"""From scored boxes to the final list: thresholds, non-maximum suppression, the cap per image."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from detectors.boxes import clip_boxes
from detectors.contract import Detections


def select_candidates(scores: Tensor, threshold: float, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best (location, class) pairs of one image and level.

    Args:
        scores: (L, C); threshold: least score, exclusive; limit: largest number of pairs.

    Returns:
        scores (n,), locations (n,) int64, classes (n,) int64.
    """
    flat = scores.flatten()
    best, index = flat.topk(min(limit, flat.numel()))
    best, index = best[best > threshold], index[best > threshold]
    classes = scores.shape[1]
    return best, torch.div(index, classes, rounding_mode="floor"), index % classes


def suppress(
    boxes: Tensor, scores: Tensor, labels: Tensor, size: Tensor, *, iou: float, limit: int
) -> Detections:
    """Clip to the image of ``size`` (height, width), drop empty boxes, per-class NMS, keep the best ``limit``."""
    boxes = clip_boxes(boxes.float(), size)
    solid = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
    boxes, scores, labels = boxes[solid], scores[solid].float(), labels[solid]
    keep = batched_nms(boxes, scores, labels, iou)[:limit]
    return Detections(boxes=boxes[keep], scores=scores[keep], labels=labels[keep])


def detect_on_levels(
    levels: Iterable[tuple[Tensor, Callable[[Tensor], Tensor]]],
    size: Tensor,
    *,
    threshold: float,
    candidates: int,
    iou: float,
    limit: int,
) -> Detections:
    """Detections of one image from the levels of a pyramid: the best pairs of each level, then per-class NMS over all.

    Args:
        levels: scores (L, C) of each level, and the boxes (n, 4) xyxy of n of its locations; only those of candidates
            are asked for.
        size: (2,) height and width of the image.
        threshold: least score, exclusive; candidates: most pairs of a level.
        iou, limit: see :func:`suppress`.
    """
    boxes, scores, labels = [], [], []
    for level_scores, boxes_at in levels:
        score, location, label = select_candidates(level_scores, threshold, candidates)
        boxes.append(boxes_at(location))
        scores.append(score)
        labels.append(label)
    return suppress(torch.cat(boxes), torch.cat(scores), torch.cat(labels), size, iou=iou, limit=limit)
