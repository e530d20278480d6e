"""Gaussian soft-NMS (Bodla et al., ICCV 2017) for a whole batch.

Soft-NMS does not remove boxes that overlap a better box, but multiplies their scores by exp(-IoU^2 / sigma). The algorithm is greedy: a
loop over the kept boxes. Each iteration processes all images and classes, and the host does not wait for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from detectors.boxes import clip_boxes, pairwise_iou
from detectors.contract import Detections
from detectors.postprocess import on_cpu

MIN_SCORE = 0.001  # a box with less is dropped


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    limit: int,
    sigma: float = 0.5,
    min_score: float = MIN_SCORE,
) -> tuple[Tensor, Tensor]:
    """Keep the best boxes of each image, and lower the scores of boxes of the same class that overlap them.

    Boxes are kept in descending order of their final scores, because a lowered score never exceeds the score of the box that
    lowered it. The first ``limit`` boxes over all classes are therefore the best ``limit`` boxes of a complete suppression.

    Args:
        boxes: (B, N, 4) xyxy; scores: (B, N), 0 at padding; labels: (B, N) int64.
        limit: largest number of boxes kept per image.
        sigma: width of the Gaussian.
        min_score: boxes with a lower score, before or after suppression, are dropped.

    Returns:
        scores (B, K) in descending order, 0 if no box remains, and positions (B, K) int64 in N; K = min(limit, N).
    """
    kept, chosen = [], []
    remaining = torch.where(scores >= min_score, scores, 0.0)
    for _ in range(min(limit, scores.shape[1])):
        best, index = remaining.max(1, keepdim=True)
        kept.append(best)
        chosen.append(index)
        box = boxes.gather(1, index.unsqueeze(-1).expand(-1, 1, 4))
        overlap = pairwise_iou(box, boxes).squeeze(1) * (labels == labels.gather(1, index))
        remaining = remaining * torch.exp(-(overlap**2) / sigma)
        remaining = torch.where(remaining >= min_score, remaining, 0.0).scatter(1, index, 0.0)
    if not kept:
        return scores.new_zeros(scores.shape[0], 0), labels.new_zeros(labels.shape[0], 0)
    return torch.cat(kept, 1), torch.cat(chosen, 1)


def soft_suppress(
    boxes: Tensor, scores: Tensor, labels: Tensor, image_sizes: Tensor, *, limit: int, sigma: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Clip to the images, drop empty boxes, soft-NMS.

    Args:
        boxes: (B, N, 4) xyxy; scores: (B, N), 0 at padding; labels: (B, N); image_sizes: (B, 2) height, width.

    Returns:
        boxes (B, K, 4), scores (B, K) in descending order, 0 at padding, labels (B, K).
    """
    boxes = clip_boxes(boxes, image_sizes.to(boxes.device).unsqueeze(1))
    solid = (boxes[..., 2:] > boxes[..., :2]).all(-1)
    scores, index = soft_nms(boxes, scores * solid, labels, limit=limit, sigma=sigma)
    return boxes.gather(1, index.unsqueeze(-1).expand(-1, -1, 4)), scores, labels.gather(1, index)


def as_detections(boxes: Tensor, scores: Tensor, labels: Tensor) -> list[Detections]:
    """Convert a padded batch (scores in descending order, 0 at padding) to a list with one entry per image, on the CPU."""
    boxes, scores, labels = on_cpu(boxes, scores, labels)
    counts = (scores > 0).sum(1).tolist()
    return [
        Detections(boxes=boxes[i, :n], scores=scores[i, :n], labels=labels[i, :n])
        for i, n in enumerate(counts)
    ]
