"""Extreme points of objects: the topmost, leftmost, bottommost and rightmost point, from masks or from boxes.

Zhou et al. 2019, "Bottom-up Object Detection by Grouping Extreme and Center Points", section 4.1: if an object touches
its box along a whole edge, the middle of that edge is the extreme point.  An edge consists of neighbouring vertices within
2 % of the box's height (top, bottom) or width (left, right) of the extreme.  Unlike the official code, an edge does not
continue in the next part of a multi-part object, and coordinates are not rounded.

All points are (x, y) in continuous pixels, in the order top, left, bottom, right.
"""

from __future__ import annotations

import numpy as np

EDGE_TOLERANCE = 0.02

# For each side: axis of the extreme coordinate, and the sign that makes it a minimum.
_SIDES = ((1, 1.0), (0, 1.0), (1, -1.0), (0, -1.0))


def extreme_points_of_polygons(
    points: np.ndarray, part_offsets: np.ndarray, annotation_part_offsets: np.ndarray
) -> np.ndarray:
    """Extreme points of objects given as polygons.

    Args:
        points: (V, 2) vertices of all parts of all objects.
        part_offsets: (P + 1,) part p has vertices part_offsets[p] to part_offsets[p + 1]; no part is empty.
        annotation_part_offsets: (A + 1,) object a has parts annotation_part_offsets[a] to [a + 1].

    Returns:
        (A, 4, 2) float32; NaN for objects without parts.
    """
    num_objects = len(annotation_part_offsets) - 1
    result = np.full((num_objects, 4, 2), np.nan, dtype=np.float32)
    owners = np.flatnonzero(np.diff(annotation_part_offsets) > 0)
    if len(owners) == 0:
        return result
    points = points.astype(np.float64)
    first_vertex = part_offsets[annotation_part_offsets[owners]]
    object_of_vertex = np.repeat(np.arange(len(owners)), np.diff(np.append(first_vertex, len(points))))
    low = np.minimum.reduceat(points, first_vertex)
    tolerance = EDGE_TOLERANCE * (np.maximum.reduceat(points, first_vertex) - low)
    ring_start = part_offsets[:-1]
    ring_of_vertex = np.repeat(np.arange(len(ring_start)), np.diff(part_offsets))
    is_ring_start = np.zeros(len(points), dtype=bool)
    is_ring_start[ring_start] = True

    for side, (axis, sign) in enumerate(_SIDES):
        free = 1 - axis
        height = sign * points[:, axis]
        extreme = np.minimum.reduceat(height, first_vertex)
        above = height - extreme[object_of_vertex]
        near = above <= tolerance[object_of_vertex, axis]
        # Find runs of consecutive near vertices, then the run with the object's first vertex on the extreme.
        starts_run = is_ring_start | np.append(True, near[1:] != near[:-1])
        run_of_vertex = np.cumsum(starts_run) - 1
        run_start = np.flatnonzero(starts_run)
        run_low = np.minimum.reduceat(points[:, free], run_start)
        run_high = np.maximum.reduceat(points[:, free], run_start)
        on_extreme = np.flatnonzero(above == 0)
        vertex = on_extreme[np.unique(object_of_vertex[on_extreme], return_index=True)[1]]
        ring = ring_of_vertex[vertex]
        run = run_of_vertex[vertex]
        first_run = run_of_vertex[part_offsets[ring]]
        last_run = run_of_vertex[part_offsets[ring + 1] - 1]
        # A ring is closed: a run at its start continues the run at its end.
        joined = near[part_offsets[ring]] & near[part_offsets[ring + 1] - 1]
        other = np.where(
            joined & (run == first_run), last_run, np.where(joined & (run == last_run), first_run, run)
        )
        middle = 0.5 * (np.minimum(run_low[run], run_low[other]) + np.maximum(run_high[run], run_high[other]))
        result[owners, side, axis] = sign * extreme
        result[owners, side, free] = middle
    return result


def extreme_points_of_mask(mask: np.ndarray) -> np.ndarray:
    """Extreme points (4, 2) float32 of a pixel mask (H, W); NaN for an empty one.

    Each point is the middle of the mask's pixels in the outermost row or column, on the outer border of the pixels.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return np.full((4, 2), np.nan, dtype=np.float32)
    top, bottom, left, right = rows[0], rows[-1], columns[0], columns[-1]

    def middle(line: np.ndarray) -> float:
        hits = np.flatnonzero(line)
        return 0.5 * (hits[0] + hits[-1] + 1)

    return np.array(
        [
            (middle(mask[top]), top),
            (left, middle(mask[:, left])),
            (middle(mask[bottom]), bottom + 1),
            (right + 1, middle(mask[:, right])),
        ],
        dtype=np.float32,
    )


def extreme_points_of_boxes(boxes: np.ndarray) -> np.ndarray:
    """Middles (A, 4, 2) float32 of the sides of boxes (A, 4), for data without masks."""
    x1, y1, x2, y2 = boxes.astype(np.float32).T
    x, y = 0.5 * (x1 + x2), 0.5 * (y1 + y2)
    return np.stack([x, y1, x1, y, x, y2, x2, y], axis=1).reshape(-1, 4, 2)
