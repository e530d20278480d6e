"""Geometry for readers, transforms and the generated data set.

Coordinates are continuous pixels: an image spans [0, W] x [0, H] and pixel (i, j) covers [j, j+1] x [i, i+1].
"""

from __future__ import annotations

import numpy as np


def polygon_box(points: np.ndarray) -> np.ndarray:
    """The tight box (4,) xyxy around vertices (n, 2)."""
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def polygon_area(points: np.ndarray) -> float:
    """Area of a simple polygon (n, 2), by the shoelace formula."""
    x, y = points[:, 0].astype(np.float64), points[:, 1].astype(np.float64)
    twice = np.dot(x[:-1], y[1:]) - np.dot(y[:-1], x[1:]) + x[-1] * y[0] - y[-1] * x[0]
    return 0.5 * abs(float(twice))


def clip_polygon(points: np.ndarray, width: float, height: float) -> np.ndarray:
    """The part (m, 2) of a polygon (n, 2) inside the window [0, width] x [0, height]; empty if they do not meet.

    Sutherland & Hodgman 1974: each side of the window cuts the polygon in turn.  If a concave polygon falls into several
    pieces, the result is one ring that joins them along the window's border, with the extent and the area of the pieces.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    if low[0] >= 0 and low[1] >= 0 and high[0] <= width and high[1] <= height:
        return points
    ring = points.astype(np.float64)
    for axis, limit, keep_above in ((0, 0.0, True), (0, width, False), (1, 0.0, True), (1, height, False)):
        if len(ring):
            ring = _cut(ring, axis, float(limit), keep_above)
    return ring.astype(points.dtype)


def longest_chord(parts: list[np.ndarray], axis: int, limit: float, length: float) -> float | None:
    """Middle of the longest piece of an axis-parallel line that lies inside some polygons.

    Args:
        parts: vertices (n, 2) of each polygon.
        axis, limit: the line x = limit (axis 0) or y = limit (axis 1).
        length: only pieces between 0 and ``length`` of the other coordinate count.

    Returns:
        The other coordinate of the middle, or None if the line does not cross the polygons.
    """
    longest, middle = 0.0, None
    for ring in parts:
        ring = ring.astype(np.float64)
        following = np.concatenate([ring[1:], ring[:1]])
        crosses = (ring[:, axis] >= limit) != (following[:, axis] >= limit)
        start, stop = ring[crosses], following[crosses]
        part = (limit - start[:, axis]) / (stop[:, axis] - start[:, axis])
        free = np.sort(start[:, 1 - axis] + part * (stop[:, 1 - axis] - start[:, 1 - axis]))
        # The line alternately enters and leaves the polygon.
        for low, high in np.clip(free, 0, length).reshape(-1, 2):
            if high - low > longest:
                longest, middle = high - low, 0.5 * (low + high)
    return middle


def _cut(ring: np.ndarray, axis: int, limit: float, keep_above: bool) -> np.ndarray:
    """One step of Sutherland-Hodgman: the part on one side of an axis-parallel line."""
    following = np.concatenate([ring[1:], ring[:1]])
    distance = ring[:, axis] - limit if keep_above else limit - ring[:, axis]
    next_distance = np.append(distance[1:], distance[0])
    inside = distance >= 0
    crosses = inside != (next_distance >= 0)
    # Each vertex gives up to two points: itself if it is inside, then the crossing of the edge that starts at it.
    result = np.empty((len(ring), 2, 2))
    result[:, 0] = ring
    span = np.where(crosses, distance - next_distance, 1.0)
    result[:, 1] = ring + (distance / span)[:, None] * (following - ring)
    result[crosses, 1, axis] = limit
    return result[np.stack([inside, crosses], axis=1)]


def transform_points(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Points (..., 2) through an affine matrix (2, 3), in the points' dtype."""
    return (points @ matrix[:, :2].T + matrix[:, 2]).astype(points.dtype)


def transform_boxes(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Boxes (n, 4) xyxy through an axis-parallel affine matrix (2, 3): scale, shift, mirror, transpose."""
    corners = transform_points(boxes.reshape(-1, 2, 2), matrix)
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
