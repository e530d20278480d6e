"""Fractal dimensions compared with layouts of known dimension, and with counts of cells in loops."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from datasets.defects import DefectLog
from datasets.fractal import fractal_dimensions
from datasets.index import AnnotationIndex
from datasets.index_builder import IndexBuilder

WIDTH, HEIGHT = 200, 100


def index_of(places: dict[int, list[tuple[float, float]]]) -> AnnotationIndex:
    """Objects of 2 x 2 pixels at relative places, by class, over three images; a crowd region and a difficult object must be ignored."""
    builder = IndexBuilder()
    for image in range(3):
        builder.add_image(image, f"{image}.jpg", WIDTH, HEIGHT)
    number = 0
    for label, own in places.items():
        for x, y in own:
            box = [x * WIDTH - 1, y * HEIGHT - 1, x * WIDTH + 1, y * HEIGHT + 1]
            builder.add_annotation(number % 3, number, label, box, area=4.0)
            number += 1
    builder.add_annotation(0, number, 0, [150.0, 80.0, 160.0, 90.0], area=100.0, crowd=True)
    builder.add_annotation(0, number + 1, 2, [150.0, 80.0, 160.0, 90.0], area=100.0, difficult=True)
    return builder.build(
        image_root=Path(), sources=[Path("test")], content_hash="0" * 64, category_ids=range(1, 5), category_names=list("abcd"),
        log=DefectLog("error"),
    )  # fmt: skip


def obvious(points: list[tuple[float, float]]) -> float:
    """Count the cells of each grid in loops, and fit the line by its normal equations."""
    if len(points) < 4:
        return 1.0
    xs, ys = [], []
    for size in range(1, 65):
        if size * size <= len(points):
            cells = {(int(x * size), int(y * size)) for x, y in points}
            xs.append(math.log(size))
            ys.append(math.log(len(cells)))
    x, y = np.mean(xs), np.mean(ys)
    slope = sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)
    return max(1.0, slope)


def test_points_lines_and_areas_have_the_dimensions_one_and_two():
    grid = [((i + 0.5) / 8, (j + 0.5) / 8) for i in range(8) for j in range(8)]
    line = [((i + 0.5) / 64, 0.5) for i in range(64)]
    found = fractal_dimensions(index_of({0: [(0.3, 0.3)] * 50, 1: line, 2: grid, 3: [(0.1, 0.9)] * 3}))
    assert found[[0, 1, 3]] == pytest.approx([1.0, 1.0, 1.0])
    assert found[2] == pytest.approx(2.0)


def test_four_objects_are_enough_and_a_centre_past_the_border_is_in_the_last_cell():
    """Boxes may stick out of their image by up to a pixel."""
    corners = [(0.25, 0.25), (1.002, 0.25), (0.25, 1.004), (1.002, 1.004)]
    found = fractal_dimensions(index_of({0: corners, 1: corners[:3], 3: corners[1:]}))
    assert found == pytest.approx([2.0, 1.0, 1.0, 1.0])


def test_random_places_equal_counts_in_loops():
    random = np.random.default_rng(0)
    places = {
        label: [tuple(0.02 + 0.96 * random.random(2) ** (1 + label)) for _ in range(number)]
        for label, number in enumerate((1200, 90, 5, 30))
    }
    found = fractal_dimensions(index_of(places))
    assert found == pytest.approx([obvious(places[label]) for label in range(4)], abs=1e-6)
    assert found[0] > found[1] > 1.0
