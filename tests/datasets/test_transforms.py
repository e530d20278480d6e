"""Transforms compared with torchvision.transforms.v2 on tv_tensors, and extreme points compared with drawn masks."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from datasets import (
    PAD_COLOR,
    ColorJitter,
    CropTransform,
    DetectionDataset,
    EvalResize,
    FixedTransform,
    PadOnly,
    ResizeTransform,
    Sample,
    read_shapes,
)
from datasets.color import _AXES, color_matrix
from datasets.extreme_points import extreme_points_of_boxes, extreme_points_of_polygons
from datasets.geometry import transform_boxes, transform_points
from datasets.transforms import resized_size, warp


def smooth_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def a_sample(height: int = 60, width: int = 80) -> Sample:
    boxes = np.array([[5, 6, 25, 30], [40, 10, 79.5, 59], [30.25, 40.5, 50.75, 58]], dtype=np.float32)
    return Sample(
        image=smooth_image(height, width),
        boxes=boxes,
        labels=np.array([2, 0, 1]),
        ignored=np.array([False, True, False]),
        image_id=5,
        original_size=(height, width),
        matrix=np.eye(3)[:2],
        extreme_points=extreme_points_of_boxes(boxes)
        + np.array([[1, 0], [0, 2], [3, 0], [0, 4]], np.float32),
    )


def as_tv(sample: Sample) -> tuple[tv_tensors.Image, tv_tensors.BoundingBoxes]:
    image = tv_tensors.Image(torch.from_numpy(sample.image).permute(2, 0, 1))
    boxes = tv_tensors.BoundingBoxes(
        torch.from_numpy(sample.boxes), format="XYXY", canvas_size=sample.image.shape[:2]
    )
    return image, boxes


def pixels(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy().astype(int)


RNG = np.random.default_rng


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_enlarging_and_mirroring_equal_torchvision(flip):
    sample = a_sample()
    found = ResizeTransform([90], 1000, flip=flip)(sample, RNG(0))
    image, boxes = (F.resize(part, [90, 120], antialias=False) for part in as_tv(sample))
    if flip:
        image, boxes = F.horizontal_flip(image), F.horizontal_flip(boxes)
    np.testing.assert_allclose(found.boxes, boxes.numpy(), atol=1e-4)
    assert np.abs(np.asarray(found.image).astype(int) - pixels(image)).max() <= 2


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_shrinking_equals_torchvision_with_antialiasing(flip):
    sample = a_sample()
    found = ResizeTransform([30], 1000, flip=flip)(sample, RNG(0))
    image, boxes = (F.resize(part, [30, 40], antialias=True) for part in as_tv(sample))
    if flip:
        image, boxes = F.horizontal_flip(image), F.horizontal_flip(boxes)
    np.testing.assert_allclose(found.boxes, boxes.numpy(), atol=1e-4)
    assert np.abs(np.asarray(found.image).astype(int) - pixels(image)).mean() <= 1


@pytest.mark.parametrize(
    ("short", "long", "expected"),
    [(800, 1333, (800, 1067)), (800, 900, (675, 900)), (512, 512, (384, 512)), (30, 1333, (30, 40))],
)
def test_sizes_equal_torchvision_with_a_long_side_limit(short, long, expected):
    found = EvalResize(short, long)(a_sample(), RNG(0)).image.shape[:2]
    assert found == expected
    theirs = F.resize(torch.zeros(3, 60, 80), [short], max_size=long if long > short else short + 1).shape[1:]
    assert abs(theirs[0] - found[0]) <= 1 and abs(theirs[1] - found[1]) <= 1


def test_the_sides_of_a_resized_image_have_at_least_a_pixel():
    assert resized_size(1, 5000, 800, 1333) == (1, 1333) and resized_size(5000, 1, 800, 1333) == (1333, 1)


def test_mirroring_both_ways_and_transposing_equal_torchvision():
    sample = a_sample()
    found = FixedTransform(flip=1.0, flip_both=True, transpose=1.0)(sample, RNG(0))
    image, boxes = (F.vertical_flip(F.horizontal_flip(part)) for part in as_tv(sample))
    np.testing.assert_array_equal(found.image, pixels(image).transpose(1, 0, 2))
    np.testing.assert_allclose(found.boxes, boxes.numpy()[:, [1, 0, 3, 2]], atol=1e-5)


def test_each_random_choice_has_a_probability_of_one_half():
    sample = replace(a_sample(), extreme_points=None)
    transform = FixedTransform(flip=0.5, flip_both=True, transpose=0.5)
    kinds = [tuple(transform(sample, RNG(seed)).matrix[:, :2].ravel()) for seed in range(400)]
    assert len(set(kinds)) == 8
    assert min(kinds.count(kind) for kind in set(kinds)) > 25


def test_a_crop_equals_torchvision_crop_and_resize():
    sample = a_sample()
    found = CropTransform(100, scales=(0.5,), border=20, flip=0.0)(sample, RNG(4))
    left, top = -found.matrix[:, 2] / found.matrix[[0, 1], [0, 1]]
    assert found.matrix[0, 0] == found.matrix[1, 1] == 100 / 40
    _, boxes = as_tv(sample)
    shifted = tv_tensors.BoundingBoxes(
        boxes - torch.tensor([left, top, left, top]), format="XYXY", canvas_size=(60, 80)
    )
    expected = F.clamp_bounding_boxes(F.resize(F.crop(shifted, 0, 0, 40, 40), [100, 100])).numpy()
    sides = expected[:, 2:] - expected[:, :2]
    kept = (sides >= 1).all(axis=1)
    assert 0 < kept.sum() <= 3
    np.testing.assert_allclose(found.boxes, expected[kept], atol=1e-3)
    np.testing.assert_array_equal(found.labels, sample.labels[kept])
    np.testing.assert_array_equal(found.ignored, sample.ignored[kept])


def test_pixels_of_a_crop_equal_torchvision_at_whole_offsets():
    image = smooth_image(60, 80)
    matrix = np.array([[2.0, 0, -2 * 10], [0, 2.0, -2 * 20]])
    found = warp(image, matrix, 60, 60)
    window = torch.from_numpy(image).permute(2, 0, 1)[:, 20:50, 10:40]
    theirs = pixels(F.resize(window, [60, 60], antialias=False))
    # At the window's border, torchvision repeats the edge, and a warp reads the image beyond it.
    assert np.abs(found.astype(int) - theirs)[2:-2, 2:-2].max() <= 2


def test_a_crop_that_zooms_out_is_padded_with_the_mean_colour_despite_jitter():
    sample = a_sample()
    found = CropTransform(64, scales=(2.0,), flip=0.0, color=ColorJitter(0.9, 0.9, 0.9))(sample, RNG(1))
    inside = transform_boxes(np.array([[0.0, 0, 80, 60]]), found.matrix)[0]
    outside = np.ones((64, 64), dtype=bool)
    x1, y1, x2, y2 = np.floor(inside).astype(int)
    outside[max(y1 - 1, 0) : y2 + 2, max(x1 - 1, 0) : x2 + 2] = False
    assert outside.sum() > 1000
    assert (found.image[outside] == PAD_COLOR).all()


@pytest.mark.parametrize(("border", "margins"), [(20, (20, 20)), (40, (20, 20)), (128, (32, 16))])
def test_crop_centres_keep_their_distance_from_the_border(border, margins):
    """``_get_border`` of CenterNet's code gives these margins for an image of 80 x 60."""
    sample = replace(a_sample(), extreme_points=None)
    centres = []
    for seed in range(60):
        found = CropTransform(32, scales=(1.0,), border=border)(sample, RNG(seed))
        inverse = cv2.invertAffineTransform(found.matrix)
        centres.append(inverse[:, :2] @ (16, 16) + inverse[:, 2])
    low, high = np.min(centres, axis=0), np.max(centres, axis=0)
    free = np.array([80, 60]) - 2 * np.array(margins)
    assert (low >= margins).all() and (high <= margins + free).all()
    assert (high - low > 0.8 * free).all()


@pytest.mark.parametrize(("scale", "side"), [(0.125, 8), (0.4, 25)])
def test_strong_shrinking_averages_every_pixel(scale, side):
    # A fine checkerboard is grey on average; sampling single pixels of it would give black or white.
    board = np.kron(np.indices((64, 64)).sum(axis=0) % 2, np.ones((1, 1))).astype(np.uint8)[..., None] * 255
    small = warp(np.repeat(board, 3, axis=2), np.array([[scale, 0, 0], [0, scale, 0]]), side, side)
    assert np.abs(small.astype(int) - 127).max() <= 2


def test_strong_shrinking_keeps_positions_if_the_factor_does_not_divide_the_size():
    image = np.zeros((67, 101, 3), np.uint8)
    image[50:60, 80:95] = 255
    matrix = np.array([[0.3, 0, 0], [0, 0.3, 0]])
    small = warp(image, matrix, 30, 20)[..., 0].astype(float)
    centre = (small * np.indices(small.shape)).sum(axis=(1, 2)) / small.sum() + 0.5
    np.testing.assert_allclose(centre[::-1], transform_points(np.array([87.5, 55.0]), matrix), atol=0.1)


TRANSFORMS = [
    ResizeTransform([40, 60, 75], 90, color=ColorJitter()),
    CropTransform(64, border=16, color=ColorJitter(lighting=0.1)),
    FixedTransform(0.5, True, 0.5),
    EvalResize(50, 60),
    PadOnly(),
]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: type(t).__name__)
def test_the_matrix_of_a_sample_describes_its_boxes_and_pixels(transform):
    sample = a_sample()
    # A spot of pure red in the middle of the second box.
    sample.image[:] = 60
    sample.image[32:37, 57:62] = (255, 0, 0)
    seen = 0
    for seed in range(12):
        found = transform(sample, RNG(seed))
        height, width = found.image.shape[:2]
        whole = transform_boxes(sample.boxes, found.matrix)
        clipped = np.clip(whole, 0, (width, height, width, height))
        sides = clipped[:, 2:] - clipped[:, :2]
        kept = (sides >= 1).all(axis=1)
        np.testing.assert_allclose(found.boxes, clipped[kept], atol=1e-4)
        assert found.original_size == (60, 80) and found.image_id == 5
        x, y = transform_points(np.array([59.5, 34.5]), found.matrix)
        if 3 < x < width - 3 and 3 < y < height - 3:
            drawn = np.asarray(found.image)
            red = drawn[..., 0].astype(int) - drawn[..., 1:].max(axis=2)
            rows, columns = np.nonzero(red > 0.6 * red.max())
            assert np.hypot(columns.mean() + 0.5 - x, rows.mean() + 0.5 - y) < 0.75
            seen += 1
    assert seen >= 3


@pytest.mark.parametrize(
    ("transform", "sides"),
    [
        (FixedTransform(0.0, False, 0.0), [0, 1, 2, 3]),
        (FixedTransform(1.0, False, 0.0), [0, 3, 2, 1]),
        (FixedTransform(1.0, True, 0.0), [2, 3, 0, 1]),
        (FixedTransform(0.0, False, 1.0), [1, 0, 3, 2]),
    ],
)
def test_extreme_points_are_mirrored_with_the_image(transform, sides):
    sample = a_sample()
    found = transform(sample, RNG(0))
    expected = transform_points(sample.extreme_points[:, sides], found.matrix)
    np.testing.assert_allclose(found.extreme_points, expected, atol=1e-5)
    np.testing.assert_allclose(found.extreme_points[:, 0, 1], found.boxes[:, 1], atol=1e-4)
    np.testing.assert_allclose(found.extreme_points[:, 1, 0], found.boxes[:, 0], atol=1e-4)


def test_extreme_points_of_cut_objects_equal_those_of_their_drawn_outlines(shapes_folder):
    index = read_shapes(shapes_folder, split="val", annotation_format="coco")
    dataset = DetectionDataset(
        index, CropTransform(128, scales=(0.5, 0.7), border=10), extreme_source="masks", cache_images=True
    )
    cut = 0
    for i in range(25):
        found = dataset[(0, i)]
        assert len(found.extreme_points) == len(found.boxes) == len(found.polygons.object_part_offsets) - 1
        for a, (points, box) in enumerate(zip(found.extreme_points, found.boxes, strict=True)):
            at_border = (box <= 0) | (box >= 128)
            if not at_border.any():
                continue
            cut += 1
            canvas = np.zeros((4 * 128, 4 * 128), np.uint8)
            (outline,) = found.polygons.parts(a)
            cv2.fillPoly(canvas, [np.rint(outline * 64 - 8).astype(np.int32)], 1, shift=4)
            rows, columns = np.nonzero(canvas)
            drawn = np.array([rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]) / 4
            np.testing.assert_allclose(
                [points[0, 1], points[1, 0], points[2, 1], points[3, 0]], drawn, atol=0.6
            )
            reach = 0.75 + 0.02 * max(np.ptp(rows), np.ptp(columns)) / 4
            for x, y in points:
                assert np.hypot((columns + 0.5) / 4 - x, (rows + 0.5) / 4 - y).min() < reach
    assert cut > 20


def test_cut_objects_without_outline_lose_points_outside_the_image():
    sample = a_sample()
    found = CropTransform(40, scales=(0.5,), border=20, flip=0.0)(sample, RNG(4))
    kept = [i for i, label in enumerate(sample.labels) if label in found.labels]
    for points, box, whole in zip(
        found.extreme_points, found.boxes, transform_boxes(sample.boxes[kept], found.matrix), strict=True
    ):
        moved = np.abs(box - whole).max() > 1e-4
        assert np.isnan(points).all() if moved else np.isfinite(points).all()


def test_points_inside_the_image_stay_if_the_border_only_cuts_the_box():
    sample = a_sample()
    sample.boxes[0] = (-0.5, 6, 75, 30)
    sample.extreme_points[0] = ((9, 6), (0.5, 11), (12, 30), (75, 14))
    found = FixedTransform(0.0)(sample, RNG(0))
    assert found.boxes[0].tolist() == [0, 6, 75, 30]
    np.testing.assert_array_equal(found.extreme_points[0], sample.extreme_points[0])


@pytest.mark.parametrize(("side", "outside"), enumerate([(30, -3), (-3, 30), (30, 63), (83, 30)]))
def test_a_point_outside_the_image_makes_all_points_unknown(side, outside):
    """The image has 80 x 60 pixels."""
    sample = a_sample()
    sample.boxes[0], sample.extreme_points[0] = (10, 10, 70, 50), ((30, 10), (10, 30), (30, 50), (70, 30))
    axis = (1, 0)[side % 2]
    sample.extreme_points[0, side] = outside
    sample.boxes[0, [1, 0, 3, 2][side]] = outside[axis]
    assert np.isnan(FixedTransform(0.0)(sample, RNG(0)).extreme_points[0]).all()


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("factor", [0.6, 1.0, 1.3])
def test_colour_changes_equal_torchvision(name, factor):
    image = smooth_image(40, 50) // 2 + 40
    matrix = color_matrix([(name, factor)], image.reshape(-1, 3).mean(axis=0))
    found = cv2.transform(image, matrix).astype(int)
    adjust = getattr(F, f"adjust_{name}")
    theirs = pixels(adjust(tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)), factor))
    assert np.abs(found - theirs).max() <= 2


def test_a_sequence_of_colour_changes_equals_torchvision():
    image = smooth_image(40, 50) // 2 + 40
    changes = [("saturation", 1.3), ("brightness", 0.9), ("contrast", 0.8)]
    found = cv2.transform(image, color_matrix(changes, image.reshape(-1, 3).mean(axis=0))).astype(int)
    theirs = torch.from_numpy(image).permute(2, 0, 1)
    for name, factor in changes:
        theirs = getattr(F, f"adjust_{name}")(theirs, factor)
    assert np.abs(found - pixels(theirs)).max() <= 3


def test_jitter_changes_colours_in_every_order_by_up_to_forty_percent(monkeypatch):
    orders, factors = set(), []

    def record(changes, mean):
        orders.add(tuple(name for name, _ in changes))
        factors.append([factor for _, factor in sorted(changes)])
        return np.eye(3, 4)

    monkeypatch.setattr("datasets.color.color_matrix", record)
    for seed in range(200):
        ColorJitter()(np.zeros((2, 2, 3), np.uint8), RNG(seed))
    low, high = np.min(factors, axis=0), np.max(factors, axis=0)
    assert len(orders) == 6
    assert (low >= 0.6).all() and (low < 0.62).all() and (high <= 1.4).all() and (high > 1.38).all()


def test_jitter_draws_from_its_ranges_and_lighting_moves_along_the_principal_axes():
    image = np.full((4, 4, 3), 100, dtype=np.uint8)
    means = np.array([ColorJitter(0.4, 0, 0)(image, RNG(seed)).mean() for seed in range(200)])
    assert 59 <= means.min() < 65 and 135 < means.max() <= 141
    colours = (
        np.array([ColorJitter(0, 0, 0, lighting=0.5)(image, RNG(seed))[0, 0] for seed in range(300)]) - 100.0
    )
    np.testing.assert_allclose(_AXES.T @ _AXES, np.eye(3), atol=1e-3)  # four decimals are published
    # The first component is nearly grey and has most of the variance.
    _, vectors = np.linalg.eigh(np.cov(colours.T))
    assert abs(vectors[:, -1] @ (0.5675, 0.5808, 0.5836)) > 0.99
    assert np.allclose(colours.std(axis=0), 255 * 0.5 * 0.2175 * 0.577, rtol=0.2)


def test_objects_thinner_than_a_pixel_are_dropped_in_training_and_kept_in_evaluation():
    sample = replace(a_sample(), extreme_points=None)
    sample.boxes = np.array([[5, 6, 25, 30], [5, 6, 6.5, 30], [10, 10, 11, 11]], dtype=np.float32)
    assert ResizeTransform([30], 1000)(sample, RNG(0)).labels.tolist() == [2]
    assert EvalResize(30, 1000)(sample, RNG(0)).labels.tolist() == [2, 0, 1]


def test_a_box_without_area_is_dropped_in_evaluation_too():
    sample = replace(a_sample(), extreme_points=None)
    sample.boxes = np.array([[5, 6, 25, 30], [5, 6, 5, 30], [10, 10, 11, 10]], dtype=np.float32)
    assert EvalResize(30, 1000)(sample, RNG(0)).labels.tolist() == [2]


def test_polygons_and_points_of_the_whole_set_survive_any_mirror(shapes_folder):
    index = read_shapes(shapes_folder, split="val", annotation_format="coco")
    dataset = DetectionDataset(index, FixedTransform(0.5, True, 0.5), extreme_source="masks")
    for i in range(20):
        found = dataset[(0, i)]
        again = extreme_points_of_polygons(
            found.polygons.points, found.polygons.part_offsets, found.polygons.object_part_offsets
        )
        # The fixed coordinates are the box's sides. The free ones only depend on the start of the walk on a flat edge.
        np.testing.assert_allclose(again[:, [0, 2], 1], found.extreme_points[:, [0, 2], 1], atol=1e-4)
        np.testing.assert_allclose(again[:, [1, 3], 0], found.extreme_points[:, [1, 3], 0], atol=1e-4)
