"""Shared parts of the tests of key-point detectors: ground truth as targets, perfect heat maps, small networks."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from afl.evaluation.coco_evaluator import CocoEvaluator
from afl.losses.target import ClassificationTarget
from datasets.index import AnnotationIndex
from detectors.contract import Targets


def random_targets(seed: int, batch: int, count: int, num_classes: int, size: int = 64) -> Targets:
    """Boxes of 4 to 30 pixels in square images of ``size``, with extreme points on their sides."""
    generator = torch.Generator().manual_seed(seed)
    sides = 4 + torch.rand(batch, count, 2, generator=generator) * 26
    corner = torch.rand(batch, count, 2, generator=generator) * (size - sides)
    boxes = torch.cat([corner, corner + sides], -1)
    return Targets(
        boxes=boxes,
        labels=torch.randint(num_classes, (batch, count), generator=generator),
        ignored=torch.zeros(batch, count, dtype=torch.bool),
        image_sizes=torch.full((batch, 2), size),
        extreme_points=points_on_sides(boxes, generator),
    )


def crowded_targets(num_classes: int) -> Targets:
    """196 separate objects of 12 to 24 pixels in one image of 512 x 512 pixels."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.cartesian_prod(torch.arange(14), torch.arange(14)) * 36.0
    corner = corner + torch.rand(196, 2, generator=generator) * 8
    boxes = torch.cat([corner, corner + 12 + torch.rand(196, 2, generator=generator) * 12], 1)[None]
    return Targets(
        boxes=boxes,
        labels=torch.randint(num_classes, (1, 196), generator=generator),
        ignored=torch.zeros(1, 196, dtype=torch.bool),
        image_sizes=torch.tensor([[512, 512]]),
        extreme_points=points_on_sides(boxes, generator),
    )


def assert_all_found(targets: Targets, found: object) -> None:
    """Assert that every object of the first image has a detection with its class and its box."""
    overlap = box_iou(targets.boxes[0], found.boxes)
    overlap = torch.where(targets.labels[0].unsqueeze(1) == found.labels, overlap, 0.0)
    assert overlap.amax(1).min() > 0.999


def points_on_sides(boxes: Tensor, generator: torch.Generator) -> Tensor:
    """A random point (..., 4, 2) on the top, left, bottom and right side of each box (..., 4)."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    share = torch.rand(*boxes.shape, generator=generator)
    x, y = (
        x1.unsqueeze(-1) + share * (x2 - x1).unsqueeze(-1),
        y1.unsqueeze(-1) + share * (y2 - y1).unsqueeze(-1),
    )
    return torch.stack(
        [
            torch.stack([x[..., 0], y1], -1),
            torch.stack([x1, y[..., 1]], -1),
            torch.stack([x[..., 2], y2], -1),
            torch.stack([x2, y[..., 3]], -1),
        ],
        -2,
    )


def images_of(index: AnnotationIndex) -> Iterator[tuple[int, Targets, Tensor, tuple[int, int]]]:
    """Each image with objects as a batch of one: its number, targets, number of classes, and height and width padded to 32.

    Classes are renumbered in each image, so that no heat map is empty.
    """
    for i in range(len(index)):
        chosen = index.annotations(i)
        if chosen.start == chosen.stop:
            continue
        classes, labels = np.unique(index.labels[chosen], return_inverse=True)
        height, width = int(index.heights[i]), int(index.widths[i])
        yield (
            i,
            Targets(
                boxes=torch.from_numpy(index.boxes[chosen]).float()[None],
                labels=torch.from_numpy(labels.astype(np.int64))[None],
                ignored=torch.from_numpy(index.crowd[chosen] | index.difficult[chosen])[None],
                image_sizes=torch.tensor([[height, width]]),
                extreme_points=torch.from_numpy(index.extreme_points[chosen])[None],
            ),
            torch.from_numpy(classes),
            (-(-height // 32) * 32, -(-width // 32) * 32),
        )


def perfect_logits(target: ClassificationTarget, height: int, width: int) -> Tensor:
    """Logits (B, C, h, w) whose sigmoid is the Gaussian target, almost 1 at its peaks and almost 0 far away."""
    heat = torch.zeros(target.num_locations * target.num_classes)
    if target.negative_index is not None:
        heat[target.negative_index] = 1 - target.negative_scale ** (1 / 4)
    heat[target.positive[target.is_positive]] = 1
    return heat.clamp(1e-6, 1 - 1e-6).logit().view(target.num_images, height, width, -1).permute(0, 3, 1, 2)


def average_precision(truth: dict, found: dict[int, object], limit: int = 100) -> float:
    """COCO's AP by the official package; ``found`` is by image id."""
    evaluator = CocoEvaluator(truth, max_detections=limit)
    evaluator.process(list(found), list(found.values()))
    return evaluator.evaluate()["AP"]


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def peaks_by_hand(heat: np.ndarray) -> list[tuple[float, int, int, int]]:
    """Local maxima (score, class, row, column) of scores (C, H, W), best first."""
    classes, height, width = heat.shape
    found = []
    for c in range(classes):
        for i in range(height):
            for j in range(width):
                around = heat[c, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
                if heat[c, i, j] == around.max():
                    found.append((float(heat[c, i, j]), c, i, j))
    return sorted(found, reverse=True)


def gaussian_by_hand(shape: tuple[int, int, int], points: list[tuple[int, int, int, float]]) -> np.ndarray:
    """(C, H, W) map with a Gaussian drawn cell by cell around each (class, row, column, radius)."""
    heat = np.zeros(shape)
    for c, row, column, radius in points:
        sigma = (2 * radius + 1) / 6
        for i in range(shape[1]):
            for j in range(shape[2]):
                if max(abs(i - row), abs(j - column)) <= radius:
                    value = math.exp(-((i - row) ** 2 + (j - column) ** 2) / (2 * sigma**2))
                    heat[c, i, j] = max(heat[c, i, j], value)
    return heat


def penalty_reduced_loss(logits: np.ndarray, heat: np.ndarray) -> float:
    """CornerNet's equation 1 with alpha 2 and beta 4, element by element, divided by the number of ones."""
    total, ones = 0.0, 0
    for z, y in zip(logits.flat, heat.flat, strict=True):
        p = sigmoid(z)
        if y == 1:
            total, ones = total - (1 - p) ** 2 * math.log(p), ones + 1
        else:
            total -= (1 - y) ** 4 * p**2 * math.log(1 - p)
    return total / max(ones, 1)


def put_at_cells(cells: Tensor, values: Tensor, present: Tensor, height: int, width: int) -> Tensor:
    """(1, D, h, w) map with the values (1, M, D) of the present objects at their cells (1, M, 2), 0 elsewhere."""
    result = torch.zeros(1, values.shape[-1], height, width)
    for k in present[0].nonzero().flatten().tolist():
        column, row = cells[0, k].tolist()
        result[0, :, row, column] = values[0, k]
    return result


def soft_nms_by_hand(found: list[tuple], sigma: float, limit: int) -> list[tuple]:
    """(score, class, x1, y1, x2, y2) suppressed class by class, best first (Bodla et al., figure 2)."""
    kept = []
    for c in {entry[1] for entry in found}:
        left = [entry for entry in found if entry[1] == c]
        while left:
            best = max(left)
            left.remove(best)
            kept.append(best)
            left = [(e[0] * math.exp(-(iou_by_hand(e[2:], best[2:]) ** 2) / sigma), *e[1:]) for e in left]
            left = [e for e in left if e[0] >= 0.001]
    return sorted(kept, reverse=True)[:limit]


def iou_by_hand(a: tuple, b: tuple) -> float:
    inter = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def clipped_by_hand(found: list[tuple], height: int, width: int) -> list[tuple]:
    """Non-empty (score, class, x1, y1, x2, y2), clipped to the image."""
    cut = [
        (
            s,
            c,
            min(max(x1, 0), width),
            min(max(y1, 0), height),
            min(max(x2, 0), width),
            min(max(y2, 0), height),
        )
        for s, c, x1, y1, x2, y2 in found
    ]
    return [entry for entry in cut if entry[4] > entry[2] and entry[5] > entry[3]]


def assert_same_detections(found: object, expected: list[tuple]) -> None:
    """Compare boxes, scores and labels of one image with a list of (score, class, x1, y1, x2, y2), best first."""
    assert len(found.scores) == len(expected)
    if expected:
        rows = torch.tensor(expected, dtype=torch.float32)
        torch.testing.assert_close(found.scores, rows[:, 0], atol=1e-5, rtol=1e-5)
        assert found.labels.tolist() == rows[:, 1].long().tolist()
        torch.testing.assert_close(found.boxes, rows[:, 2:], atol=1e-4, rtol=1e-5)
