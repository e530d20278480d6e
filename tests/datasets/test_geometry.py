"""Clipping compared with OpenCV's convex intersection and with pixels; affine maps compared with their inverses."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from datasets.geometry import (
    clip_polygon,
    longest_chord,
    polygon_area,
    polygon_box,
    transform_boxes,
    transform_points,
)

number = st.floats(-20, 40, allow_nan=False).map(lambda v: round(v, 2))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(number, number), min_size=3, max_size=10))
def test_clipping_convex_polygons_equals_opencv(points):
    hull = cv2.convexHull(np.asarray(points, dtype=np.float32))
    assume(hull is not None and len(hull) >= 3)
    hull = hull[:, 0].astype(np.float64)
    assume(polygon_area(hull) >= 1)
    window = np.array([(0, 0), (24, 0), (24, 18), (0, 18)], dtype=np.float32)
    area, _ = cv2.intersectConvexConvex(hull.astype(np.float32), window)
    clipped = clip_polygon(hull, 24, 18)
    assert (polygon_area(clipped) if len(clipped) > 2 else 0.0) == pytest.approx(area, abs=2e-2)


@pytest.mark.parametrize("seed", range(8))
def test_clipping_concave_polygons_keeps_their_pixels(seed):
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 12))
    star = rng.uniform(200, 900, 12)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1) + 500
    whole, window = np.zeros((1600, 1600), np.uint8), np.zeros((1600, 1600), np.uint8)
    cv2.fillPoly(whole, [np.rint(star + 300).astype(np.int32)], 1)
    window[300:1100, 300:900] = 1
    clipped = clip_polygon(star, 600, 800)
    rows, columns = np.nonzero(whole * window)
    expected = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) - 300
    np.testing.assert_allclose(polygon_box(clipped), expected, atol=3)
    assert polygon_area(clipped) == pytest.approx(len(rows), rel=0.01)


def test_the_longest_chord_equals_a_manual_computation():
    comb = np.array([[0, 0], [10, 0], [10, 2], [4, 2], [4, 6], [10, 6], [10, 11], [0, 11]], dtype=np.float32)
    assert longest_chord([comb], 0, 7.0, 20) == 8.5
    assert longest_chord([comb], 0, 7.0, 7) == 1.0
    assert longest_chord([comb], 0, 2.0, 20) == 5.5
    assert longest_chord([comb], 1, 4.0, 20) == 2.0
    assert longest_chord([comb], 0, 12.0, 20) is None
    assert (
        longest_chord([comb - np.float32([0, 9])], 0, 7.0, 20) == 1.0
    )  # from -3 to 2: the part inside the window is 0 to 2


def test_clipping_keeps_inner_polygons_and_empties_outer_ones():
    inner = np.array([[1, 1], [5, 1], [3, 4]], dtype=np.float32)
    assert clip_polygon(inner, 6, 6) is inner
    assert len(clip_polygon(inner + 10, 6, 6)) == 0


scale = st.floats(0.2, 5) | st.floats(-5, -0.2)


@settings(max_examples=50, deadline=None)
@given(scale, scale, st.floats(-500, 500), st.floats(-500, 500), st.booleans(), st.integers(0, 2**32 - 1))
def test_a_map_and_its_inverse_restore_the_boxes(a, d, e, f, transposed, seed):
    matrix = np.array([[0, a, e], [d, 0, f]] if transposed else [[a, 0, e], [0, d, f]])
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.uniform(0, 640, size=(6, 2, 2)), axis=1)
    boxes = corners.reshape(6, 4)
    there = transform_boxes(boxes, matrix)
    assert (there[:, 2:] >= there[:, :2]).all()
    np.testing.assert_allclose(transform_boxes(there, cv2.invertAffineTransform(matrix)), boxes, atol=1e-9)


def test_affine_points_equal_opencv():
    rng = np.random.default_rng(0)
    matrix, points = rng.normal(size=(2, 3)), rng.normal(size=(5, 2))
    np.testing.assert_allclose(transform_points(points, matrix), cv2.transform(points[None], matrix)[0])
