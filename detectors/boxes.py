"""Geometry shared by the detectors: pairwise overlaps, box losses, clipping, cells of a map."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Number of pairs of an object and an anchor or location that are compared together. On a CPU their overlaps fit into the cache.
_AT_ONCE, _AT_ONCE_ON_CPU = 1 << 26, 1 << 17


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of every box of ``a`` (..., N, 4) with every box of ``b`` (..., K, 4), xyxy: (..., N, K)."""
    inter = pairwise_intersection(a, b)
    union = (box_area(a).unsqueeze(-1) + box_area(b).unsqueeze(-2)).sub_(inter)
    return inter / union.clamp_(min=1e-9)


def pairwise_intersection(a: Tensor, b: Tensor) -> Tensor:
    """Area shared by every box of ``a`` (..., N, 4) with every box of ``b`` (..., K, 4): (..., N, K)."""
    # One coordinate at a time, which avoids a (..., N, K, 2) tensor of corners.
    width = torch.minimum(a[..., :, None, 2], b[..., None, :, 2]) - torch.maximum(
        a[..., :, None, 0], b[..., None, :, 0]
    )
    height = torch.minimum(a[..., :, None, 3], b[..., None, :, 3]) - torch.maximum(
        a[..., :, None, 1], b[..., None, :, 1]
    )
    return width.clamp_(min=0).mul_(height.clamp_(min=0))


def box_area(boxes: Tensor) -> Tensor:
    """The area (...) of boxes (..., 4) xyxy; zero for degenerate boxes."""
    return (boxes[..., 2] - boxes[..., 0]).clamp(min=0) * (boxes[..., 3] - boxes[..., 1]).clamp(min=0)


def blocks_of_objects(boxes: Tensor, mask: Tensor, places: int) -> Iterator[tuple[slice, int, Tensor]]:
    """Split the masked objects of a batch into blocks, to limit the memory of their overlaps with ``places`` anchors or locations.

    On an accelerator, a block has a few objects of every image. On a CPU, where reading the mask is cheap, it has all objects of
    a few images, without the padding after the last object.

    Args:
        boxes: (B, M, 4) xyxy; mask: (B, M) bool.

    Yields:
        The images of the block, the position of its first object in them, and its boxes (b, m, 4). Boxes are empty where the
        mask is false, and an empty box has no overlap.
    """
    batch, count = mask.shape
    boxes = torch.where(mask.unsqueeze(-1), boxes, 0.0)
    if boxes.device.type == "cpu":
        ends = (mask * torch.arange(1, count + 1)).amax(1).tolist() if count else [0] * batch
        together = max(1, _AT_ONCE_ON_CPU // max(places * max(ends, default=0), 1))
        parts = [(slice(i, i + together), max(ends[i : i + together])) for i in range(0, batch, together)]
        size = max(1, _AT_ONCE_ON_CPU // max(places, 1))
    else:
        parts, size = [(slice(None), count)], max(1, _AT_ONCE // max(batch * places, 1))
    for images, end in parts:
        for first in range(0, end, size):
            yield images, first, boxes[images, first : min(first + size, end)]


def aligned_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of box i of ``a`` (N, 4) with box i of ``b`` (N, 4): (N,)."""
    return _iou_union(a, b)[0]


def aligned_giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of box i of ``a`` with box i of ``b``, in (-1, 1]: (N,) (Rezatofighi et al., CVPR 2019)."""
    iou, union = _iou_union(a, b)
    hull = (torch.maximum(a[..., 2], b[..., 2]) - torch.minimum(a[..., 0], b[..., 0])) * (
        torch.maximum(a[..., 3], b[..., 3]) - torch.minimum(a[..., 1], b[..., 1])
    )
    return iou - (hull - union) / hull.clamp(min=1e-7)


def _iou_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    width = (torch.minimum(a[..., 2], b[..., 2]) - torch.maximum(a[..., 0], b[..., 0])).clamp(min=0)
    height = (torch.minimum(a[..., 3], b[..., 3]) - torch.maximum(a[..., 1], b[..., 1])).clamp(min=0)
    inter = width * height
    union = box_area(a) + box_area(b) - inter
    return inter / union.clamp(min=1e-7), union


def clip_boxes(boxes: Tensor, size: Tensor) -> Tensor:
    """Clip (..., 4) xyxy to images of ``size`` (2,) or (..., 2), height then width."""
    height, width = size[..., 0], size[..., 1]
    zero = torch.zeros_like(width)
    low = torch.stack([zero, zero, zero, zero], -1)
    high = torch.stack([width, height, width, height], -1)
    return torch.minimum(torch.maximum(boxes, low.to(boxes)), high.to(boxes))


def middles_of_sides(boxes: Tensor) -> Tensor:
    """Extreme points (B, N, 4, 2) of boxes (B, N, 4) xyxy: top, left, bottom, right."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    return torch.stack([torch.stack(p, -1) for p in ((x, y1), (x1, y), (x, y2), (x2, y))], -2)


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of the values where the mask is true; other values, NaN included, are ignored."""
    return torch.where(mask, values, torch.zeros_like(values)).sum()


def cell_centres(height: int, width: int, stride: int, device: torch.device) -> Tensor:
    """(H * W, 2) x, y in pixels of the centre of every cell, row by row."""
    y, x = torch.meshgrid(
        torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
    )
    return (torch.stack([x, y], -1).reshape(-1, 2) + 0.5) * stride


def cells_inside(boxes: Tensor, mask: Tensor, points: Tensor) -> Tensor:
    """Find the points inside at least one of the masked boxes of their image. A box without width contains no point.

    Args:
        boxes: (B, M, 4) xyxy; mask: (B, M) bool; points: (L, 2) x, y.

    Returns:
        (B, L) bool.
    """
    x, y = points.t().contiguous()
    found = torch.zeros(len(boxes), len(points), dtype=torch.bool, device=points.device)
    for images, _, some in blocks_of_objects(boxes, mask, len(points)):
        x1, y1, x2, y2 = (side.unsqueeze(-1) for side in some.unbind(-1))
        inside = (x >= x1) & (x <= x2) & (y >= y1) & (y <= y2) & (x2 > x1)
        found[images] |= inside.any(1)
    return found
