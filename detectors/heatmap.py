"""Parts that the heat-map detectors share: Gaussian targets, peaks, and reading values at cells.

Maps have a stride: cell (x, y) of a map covers the pixels [x * stride, (x + 1) * stride). Element order of a
heat map seen as (R, C) logits: image, row, column, class.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor

from afl.losses.fused import uses_triton
from afl.losses.target import PADDING, ClassificationTarget
from detectors.boxes import cell_centres, cells_inside, masked_sum
from detectors.contract import Targets
from detectors.postprocess import rows_of_images

PENALTY_POWER = (
    4  # beta of CornerNet's equation 1: a negative at height Y of a Gaussian has the weight (1 - Y)^4
)


def gaussian_radius(height: Tensor, width: Tensor, overlap: float = 0.3, legacy: bool = False) -> Tensor:
    """Radius within which a shifted box still overlaps its object by ``overlap`` (CornerNet, 3.2).

    The two corners can move by r in three ways: in the same direction, both inwards, or both outwards. Each way gives a quadratic
    equation in r. The radius is the smallest of the three roots that keep the overlap.

    Args:
        height, width: object sizes in map cells, any shape.
        overlap: smallest IoU of the shifted box with the object.
        legacy: use the formula of the first releases, which lacks the leading coefficient in the division and gives 2 to 4 times
            larger radii; only to reproduce their targets, with their overlap of 0.7.

    Returns:
        Radius in cells, not rounded.
    """
    total, area = height + width, height * width
    if legacy:
        equations = (
            (1.0, total, area * (1 - overlap) / (1 + overlap)),
            (4.0, 2 * total, (1 - overlap) * area),
            (4.0 * overlap, -2 * overlap * total, (overlap - 1) * area),
        )
        roots = [(b + (b**2 - 4 * a * c).clamp(min=0).sqrt()) / 2 for a, b, c in equations]
        return torch.stack(roots, -1).amin(-1)
    same = (total - (total**2 - 4 * area * (1 - overlap) / (1 + overlap)).clamp(min=0).sqrt()) / 2
    inwards = (2 * total - (4 * total**2 - 16 * (1 - overlap) * area).clamp(min=0).sqrt()) / 8
    outwards = (
        -2 * overlap * total + (4 * overlap**2 * total**2 + 16 * overlap * (1 - overlap) * area).sqrt()
    ) / (8 * overlap)
    return torch.stack([same, inwards, outwards], -1).amin(-1)


def object_radius(boxes: Tensor, stride: int, overlap: float = 0.3, legacy: bool = False) -> Tensor:
    """Gaussian radius (...) of boxes (..., 4) xyxy in pixels: a whole number of cells as float, at least 0."""
    size = ((boxes[..., 2:] - boxes[..., :2]) / stride).ceil()
    return gaussian_radius(size[..., 1], size[..., 0], overlap, legacy).floor().clamp(min=0)


@cache
def largest_radius(height: int, width: int, overlap: float = 0.3, legacy: bool = False) -> int:
    """Radius of an object as large as a map of ``height`` x ``width`` cells, the upper limit for all objects in it."""
    return int(gaussian_radius(torch.tensor(float(height)), torch.tensor(float(width)), overlap, legacy))


def point_cells(points: Tensor, stride: int, height: int, width: int) -> Tensor:
    """The integer cell (..., 2) column, row that contains each point (..., 2) x, y in pixels, clamped to the map."""
    x, y = (points / stride).floor().unbind(-1)
    return torch.stack([x.clamp(0, width - 1), y.clamp(0, height - 1)], -1).long()


def heatmap_targets(
    cells: Tensor,
    boxes: Tensor,
    targets: Targets,
    *,
    num_classes: int,
    height: int,
    width: int,
    stride: int,
    min_overlap: float = 0.3,
    legacy_radius: bool = False,
) -> list[ClassificationTarget]:
    """Targets of K heat maps, each with one point per object (CornerNet, equation 1 and 3.2).

    An unnormalised Gaussian with sigma = (2 r + 1) / 6 is drawn around each point, inside the square of radius r. Where two
    Gaussians of a class overlap, the higher value is used. The point's cell is positive, and the other cells of the Gaussian are
    negatives with the weight (1 - Y)^4. Elements in ignored regions are ignored, except positives. Memory is proportional to
    the number of cells in the squares.

    Args:
        cells: (K, B, M, 2) int64 column, row of each object's point in each map.
        boxes: (B, M, 4) xyxy of the objects in pixels, for the radius.
        targets: the batch's ground truth; its valid objects are drawn.
        num_classes, height, width, stride: shape of the maps.
        min_overlap, legacy_radius: see :func:`gaussian_radius`.
    """
    labels, present = targets.labels, targets.valid
    radius = object_radius(boxes, stride, min_overlap, legacy_radius)
    device = cells.device
    if uses_triton(radius):
        largest = largest_radius(height, width, min_overlap, legacy_radius)
        kernel = import_module("detectors.triton_heatmap")
        lists = kernel.gaussian_lists(cells, radius, labels, present, largest, num_classes, height, width)
    else:
        lists = gaussian_lists(cells, radius, labels, present, num_classes, height, width)
    image = torch.arange(len(labels), device=device).repeat_interleave(height * width)
    ignored = cells_inside(
        targets.boxes, targets.ignored_boxes, cell_centres(height, width, stride, device)
    ).flatten()
    return [
        ClassificationTarget(
            num_classes=num_classes,
            image=image,
            num_images=len(labels),
            positive=positive,
            ignored=ignored,
            negative_index=negative_index,
            negative_scale=negative_scale,
            verified=targets.verified,
        )
        for positive, negative_index, negative_scale in lists
    ]


Lists = tuple[Tensor, Tensor, Tensor]


def gaussian_lists(
    cells: Tensor, radius: Tensor, labels: Tensor, present: Tensor, num_classes: int, height: int, width: int
) -> list[Lists]:
    """Elements of the Gaussians of each map: flat indices of the peaks, and flat indices and (1 - Y)^4 of the other elements.

    The lists have no padding, so on an accelerator the host would wait for their lengths. See :func:`heatmap_targets` for the
    arguments.
    """
    image, slot = present.nonzero(as_tuple=True)
    cells, radius = cells[:, image, slot], radius[image, slot]
    reach = int(radius.max()) if len(radius) else 0
    step = torch.arange(-reach, reach + 1, device=cells.device)
    spread = 2 * ((2 * radius + 1) / 6).unsqueeze(-1) ** 2
    one_sided = torch.exp(-(step**2) / spread) * (step.abs() <= radius.unsqueeze(-1))
    x, y = cells[..., :1] + step, cells[..., 1:] + step
    across = one_sided * ((x >= 0) & (x < width))
    down = one_sided * ((y >= 0) & (y < height))
    # (K, n, rows, columns) of n objects; below the threshold, 1 - Y is 1 in float32.
    heights = down.unsqueeze(-1) * across.unsqueeze(-2)
    drawn = (heights >= torch.finfo(heights.dtype).eps).flatten().nonzero().flatten()
    elements = len(present) * height * width * num_classes
    first = image * (height * width * num_classes) + labels[image, slot]
    first = first + elements * torch.arange(len(cells), device=cells.device).unsqueeze(-1)
    index = first[..., None, None] + (y.unsqueeze(-1) * width + x.unsqueeze(-2)) * num_classes
    # Objects of one class may share elements; each element occurs once, with the highest value.
    index, place = index.flatten()[drawn].unique(return_inverse=True)
    highest = heights.new_zeros(len(index)).scatter_reduce_(0, place, heights.flatten()[drawn], "amax")
    is_peak = highest == 1
    peak, slope, scale = index[is_peak], index[~is_peak], (1 - highest[~is_peak]) ** PENALTY_POWER
    ends = elements * torch.arange(1, len(cells), device=cells.device)
    peak_ends, slope_ends = (torch.searchsorted(found, ends).cpu() for found in (peak, slope))
    return [
        (a - k * elements, b - k * elements, c)
        for k, (a, b, c) in enumerate(
            zip(
                peak.tensor_split(peak_ends),
                slope.tensor_split(slope_ends),
                scale.tensor_split(slope_ends),
                strict=True,
            )
        )
    ]


def owners(
    target: ClassificationTarget, cells: Tensor, labels: Tensor, present: Tensor, width: int, area: int
) -> Tensor:
    """The object of each positive of a heat map: (P,) int64 position in the flattened (B, M) list, arbitrary at padding.

    If several objects of a class share a cell, the first of them is chosen.

    Args:
        cells: (B, M, 2) column, row; labels, present: (B, M); width, area: the map's W and H * W.
    """
    image = torch.arange(len(labels), device=labels.device).unsqueeze(1)
    element = (image * area + cells[..., 1] * width + cells[..., 0]) * target.num_classes + labels
    element = torch.where(present, element, PADDING - 1).flatten()
    if not element.numel():
        return torch.zeros_like(target.positive)
    return (target.positive.unsqueeze(1) == element).int().argmax(1)


def gather_cells(features: Tensor, cells: Tensor) -> Tensor:
    """The values (B, M, D), float32, of a map (B, D, H, W) at cells (B, M, 2) column, row.

    The map is converted to float32 first, so that gradients of objects that share a cell are added in float32.
    """
    flat = features.float().flatten(2).transpose(1, 2)
    index = cells[..., 1] * features.shape[-1] + cells[..., 0]
    return rows_of_images(flat, index)


def offset_loss(offsets: Tensor, points: Tensor, cells: Tensor, mask: Tensor, stride: int) -> Tensor:
    """Smooth L1 distance of the sub-cell offsets, summed over objects and both coordinates (CornerNet, equation 3).

    Args:
        offsets: (B, 2, h, w) predicted x, y in cells from a cell's upper left corner.
        points: (B, M, 2) x, y in pixels; cells: (B, M, 2) column, row of their cells; mask: (B, M) bool.
    """
    wanted = points / stride - cells
    distance = F.smooth_l1_loss(gather_cells(offsets, cells), wanted, reduction="none")
    return masked_sum(distance, mask.unsqueeze(-1))


def keep_peaks(heat: Tensor) -> Tensor:
    """Set all scores (B, C, H, W) except the local maxima of 3 x 3 cells to zero (Objects as Points, 3)."""
    return heat.masked_fill(_highest_of_three(_highest_of_three(heat, -1), -2) != heat, 0.0)


def _highest_of_three(x: Tensor, dim: int) -> Tensor:
    """Maximum of each cell and its two neighbours along ``dim``; unlike a pooling, it does not store positions."""
    highest = x.clone()
    before, after = x.narrow(dim, 0, x.shape[dim] - 1), x.narrow(dim, 1, x.shape[dim] - 1)
    for place, neighbour in ((1, before), (0, after)):
        part = highest.narrow(dim, place, x.shape[dim] - 1)
        torch.maximum(part, neighbour, out=part)
    return highest


def top_peaks(heat: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best ``count`` cells over all classes of each image.

    Args:
        heat: (B, C, H, W) scores.

    Returns:
        scores (B, K) in descending order, labels (B, K) int64, cells (B, K, 2) int64 column, row; K = min(count, C * H * W).
    """
    batch, classes, height, width = heat.shape
    scores, index = heat.flatten(1).topk(min(count, classes * height * width))
    cell = index % (height * width)
    cells = torch.stack([cell % width, torch.div(cell, width, rounding_mode="floor")], -1)
    return scores, torch.div(index, height * width, rounding_mode="floor"), cells
