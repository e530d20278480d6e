"""From scored boxes to the final list: thresholds, non-maximum suppression, the cap per image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from detectors.boxes import clip_boxes
from detectors.contract import Detections, Outputs

# Scores of one level that are computed at once on an accelerator.
_AT_ONCE = 1 << 27


def best_pairs(scores: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best (location, class) pairs of each image on one level.

    Args:
        scores: (B, L, C); limit: most pairs of an image.

    Returns:
        scores (B, K) falling, locations (B, K) int64, classes (B, K) int64; K = min(limit, L * C).
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
    """Detections from the levels of a pyramid: the best pairs of each level, then per-class NMS over all levels.

    The device works on many images at once and gives all candidates to the CPU in one transfer. The threshold and NMS,
    whose results have a size that the host must know, then run on the CPU.

    Args:
        outputs: of a detector; level_sizes: locations of each level, A in all.
        image_sizes: (B, 2) height and width.
        num_classes: C.
        per_image: names of the outputs (B, A, ...) that ``scores`` and ``boxes`` read; shared: of those (A, ...).
        scores: from the outputs of one level (b, L, ...) or (L, ...) to scores (b, L, C).
        boxes: from these outputs and locations (b, K) to boxes (b, K, 4) xyxy; only candidates are asked for.
        threshold: least score, exclusive; candidates: most pairs of a level.
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
    """Images whose ``scores`` are computed together. On a CPU one, so that they fit the cache."""
    return 1 if device.type == "cpu" else max(1, _AT_ONCE // scores)


def on_cpu(boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (B, K, 4) and scores (B, K) in float32 and labels (B, K) int64, moved to the CPU in one transfer."""
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
    keep = batched_nms(boxes, scores, labels, iou)[:limit]
    return Detections(boxes=boxes[keep], scores=scores[keep], labels=labels[keep])
