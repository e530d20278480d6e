"""Selects the final detections from scored boxes: thresholds, non-maximum suppression, and the limit per image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from detectors.boxes import clip_boxes
from detectors.contract import Detections, Outputs

# Number of scores of one level that an accelerator computes together.
_AT_ONCE = 1 << 27


def best_pairs(scores: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best (location, class) pairs of each image on one level.

    Args:
        scores: (B, L, C).
        limit: largest number of pairs per image.

    Returns:
        scores (B, K) in descending order, locations (B, K) int64, classes (B, K) int64; K = min(limit, L * C).
    """
    classes = scores.shape[2]
    best, index = scores.flatten(1).topk(min(limit, scores[0].numel()))
    return best, torch.div(index, classes, rounding_mode="floor"), index % classes


def rows_of_images(values: Tensor, at: Tensor) -> Tensor:
    """Rows (B, K, D) of ``values`` (B, L, D) at positions (B, K)."""
    return values.gather(1, at.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def detect_on_levels(
    outputs: Outputs,
    level_sizes: list[int],
    image_sizes: Tensor,
    *,
    num_classes: int,
    per_image: tuple[str, ...],
    shared: tuple[str, ...],
    scores: Callable[[Outputs], Tensor],
    boxes: Callable[[Outputs, Tensor], Tensor],
    threshold: float,
    candidates: int,
    iou: float,
    limit: int,
) -> list[Detections]:
    """Select detections from the levels of a pyramid: the best pairs of each level, then per-class NMS over all levels.

    The device processes many images together and sends all candidates to the CPU in one transfer. The threshold and NMS then run on
    the CPU, because the host must know the size of their results.

    Args:
        outputs: of a detector.
        level_sizes: number of locations of each level; their sum is A.
        image_sizes: (B, 2) height and width.
        num_classes: C.
        per_image: names of the outputs (B, A, ...) that ``scores`` and ``boxes`` read.
        shared: names of the outputs (A, ...) that they read.
        scores: computes scores (b, L, C) from the outputs of one level, (b, L, ...) or (L, ...).
        boxes: computes boxes (b, K, 4) xyxy from these outputs at locations (b, K); only called for candidates.
        threshold: lower limit of the score, exclusive.
        candidates: largest number of pairs per level.
        iou, limit: see :func:`suppress`.

    Returns:
        One entry for each image, on the CPU.
    """
    at_once = _images_at_once(outputs[per_image[0]].device, max(level_sizes) * num_classes)
    split = {name: outputs[name].split(level_sizes) for name in shared}
    found = []
    for first in range(0, len(image_sizes), at_once):
        some = {name: outputs[name][first : first + at_once].split(level_sizes, 1) for name in per_image}
        parts = []
        for k in range(len(level_sizes)):
            level = {name: values[k] for name, values in (split | some).items()}
            score, location, label = best_pairs(scores(level), candidates)
            parts.append((boxes(level, location), score, label))
        found.append(tuple(torch.cat(part, 1) for part in zip(*parts, strict=True)))
    result = []
    for box, score, label, size in zip(
        *on_cpu(*(torch.cat(part) for part in zip(*found, strict=True))), image_sizes.cpu(), strict=True
    ):
        good = score > threshold
        result.append(suppress(box[good], score[good], label[good], size, iou=iou, limit=limit))
    return result


def _images_at_once(device: torch.device, scores: int) -> int:
    """Number of images whose ``scores`` are computed together; one on a CPU, so that they fit into the cache."""
    return 1 if device.type == "cpu" else max(1, _AT_ONCE // scores)


def on_cpu(boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Move boxes (B, K, 4), scores (B, K) and labels (B, K) to the CPU in one transfer, as float32, float32 and int64."""
    # Class numbers below 2^24 are exact in float32.
    columns = [boxes.float(), scores.float().unsqueeze(-1), labels.float().unsqueeze(-1)]
    rows = torch.cat(columns, -1).cpu()
    return rows[..., :4], rows[..., 4], rows[..., 5].long()


def suppress(
    boxes: Tensor, scores: Tensor, labels: Tensor, size: Tensor, *, iou: float, limit: int
) -> Detections:
    """Clip to the image of ``size`` (height, width), drop empty boxes, per-class NMS, keep the best ``limit``."""
    boxes = clip_boxes(boxes, size)
    solid = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
    boxes, scores, labels = boxes[solid], scores[solid], labels[solid]
    keep = per_class_nms(boxes, scores, labels, iou)[:limit]
    return Detections(boxes=boxes[keep], scores=scores[keep], labels=labels[keep])


def per_class_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> Tensor:
    """Positions of the boxes (N, 4) that non-maximum suppression of each class keeps, best first.

    torchvision moves the classes apart by adding to the coordinates. In float32, the coordinates of 1,203 classes would lose their
    digits: the grid of the last ones is an eighth of a pixel.
    """
    return batched_nms(boxes.double(), scores.double(), labels, iou)
