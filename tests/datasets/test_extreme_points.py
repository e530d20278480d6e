"""Extreme points compared with a walk along the vertices, with pixels, and with manual computations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_api

from datasets import read_coco
from datasets.extreme_points import (
    extreme_points_of_boxes,
    extreme_points_of_mask,
    extreme_points_of_polygons,
)


def pack(objects: list[list[list]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    parts = [np.asarray(part, dtype=np.float64).reshape(-1, 2) for parts in objects for part in parts]
    points = np.concatenate(parts) if parts else np.zeros((0, 2))
    return (
        points,
        np.cumsum([0] + [len(part) for part in parts]),
        np.cumsum([0] + [len(parts) for parts in objects]),
    )


def walk(parts: list[list]) -> np.ndarray:
    """The published procedure, one vertex at a time, on the part with the extreme."""
    rings = [np.asarray(part, dtype=np.float64).reshape(-1, 2) for part in parts]
    everything = np.concatenate(rings)
    size = everything.max(axis=0) - everything.min(axis=0)
    result = []
    for axis, pick in ((1, min), (0, min), (1, max), (0, max)):
        extreme = pick(point[axis] for point in everything)
        ring = next(ring for ring in rings if extreme in ring[:, axis])
        start = ring[:, axis].tolist().index(extreme)
        visited = {start}
        for step in (1, -1):
            at = (start + step) % len(ring)
            while at != start and abs(ring[at, axis] - extreme) <= 0.02 * size[axis]:
                visited.add(at)
                at = (at + step) % len(ring)
        free = [ring[at, 1 - axis] for at in visited]
        point = [0.0, 0.0]
        point[axis], point[1 - axis] = extreme, (min(free) + max(free)) / 2
        result.append(point)
    return np.asarray(result)


coordinate = st.integers(0, 60).map(lambda n: n / 2)
ring = st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=9)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(ring, max_size=3), min_size=1, max_size=4))
def test_extreme_points_equal_a_walk_along_the_vertices(objects):
    found = extreme_points_of_polygons(*pack(objects))
    for points, parts in zip(found, objects, strict=True):
        if parts:
            np.testing.assert_allclose(points, walk(parts), rtol=1e-6)
        else:
            assert np.isnan(points).all()


def test_extreme_points_of_a_rectangle_are_the_middles_of_its_sides():
    box = [2, 3, 10, 3, 10, 9, 2, 9]
    expected = [[6, 3], [2, 6], [6, 9], [10, 6]]
    for shift in range(0, 8, 2):
        turned = box[shift:] + box[:shift]
        np.testing.assert_allclose(extreme_points_of_polygons(*pack([[turned]]))[0], expected)
    np.testing.assert_allclose(extreme_points_of_polygons(*pack([[box + box[:2]]]))[0], expected)
    np.testing.assert_allclose(extreme_points_of_boxes(np.array([[2, 3, 10, 9]]))[0], expected)


def test_an_edge_may_lean_by_two_percent_of_the_height():
    lean, steep = ([[0, 0, 8, h, 9, 100, 1, 100]] for h in (2.0, 2.1))
    assert extreme_points_of_polygons(*pack([lean]))[0, 0].tolist() == [4, 0]
    assert extreme_points_of_polygons(*pack([steep]))[0, 0].tolist() == [0, 0]


def test_the_walk_stays_in_the_part_with_the_extreme():
    left, right = [0, 0, 10, 0, 10, 10, 0, 10], [30, 0.1, 40, 0.1, 40, 10, 30, 10]
    points = extreme_points_of_polygons(*pack([[left, right]]))[0]
    assert points[0].tolist() == [5, 0] and points[3].tolist() == pytest.approx([40, 5.05])


def test_extreme_points_of_pixels_equal_a_manual_computation():
    mask = np.zeros((6, 8), dtype=bool)
    mask[1, 3:5] = mask[2, 2:7] = mask[3, 4] = True
    assert extreme_points_of_mask(mask).tolist() == [[4, 1], [2, 2.5], [4.5, 4], [7, 2.5]]
    assert np.isnan(extreme_points_of_mask(mask & False)).all()


def test_points_of_real_polygons_lie_on_the_masks_that_pycocotools_draws(shared_data):
    folder = shared_data / "coco_sample"
    index = read_coco(folder / "annotations" / "instances_val2017.json", folder / "val2017")
    apart: list[float] = []
    off: list[float] = []
    for i in range(len(index)):
        for a in range(index.offsets[i], index.offsets[i + 1]):
            if np.isnan(index.extreme_points[a]).any():
                assert index.crowd[a]
                continue
            first, last = index.annotation_part_offsets[a : a + 2]
            parts = [
                index.polygon_points[index.part_offsets[p] : index.part_offsets[p + 1]].ravel().tolist()
                for p in range(first, last)
            ]
            height, width = int(index.heights[i]), int(index.widths[i])
            mask = mask_api.decode(mask_api.merge(mask_api.frPyObjects(parts, height, width)))
            if mask.sum() < 50:
                continue
            pixels = extreme_points_of_mask(mask)
            found = index.extreme_points[a]
            # The outermost row or column is the same, except for spikes that are thinner than a pixel ...
            apart += np.abs(found[[0, 2], 1] - pixels[[0, 2], 1]).tolist()
            apart += np.abs(found[[1, 3], 0] - pixels[[1, 3], 0]).tolist()
            # ... and the point is on the object, within the two percent that an edge may lean.
            rows, columns = np.nonzero(mask)
            leaning = 0.02 * max(np.ptp(rows), np.ptp(columns))
            for x, y in found:
                off.append(np.hypot(columns + 0.5 - x, rows + 0.5 - y).min() - leaning)
    assert len(apart) > 1000 and np.median(apart) < 0.6 and np.quantile(apart, 0.99) < 1.5 and max(apart) < 5
    assert np.quantile(off, 0.99) < 1.5 and max(off) < 6
