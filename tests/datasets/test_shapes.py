"""LongTail Shapes: counts, rules, tightness of boxes, and safety of the generation."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets import (
    ClassStatistics,
    frequency_groups,
    generate_pretraining_shapes,
    generate_shapes,
    read_shapes,
)
from datasets.geometry import polygon_area
from datasets.shapes import (
    BENCHMARK_FILLS,
    BENCHMARK_OUTLINES,
    MORE_PRETRAINING_FILLS,
    MORE_PRETRAINING_OUTLINES,
    PRETRAINING_FILLS,
    PRETRAINING_OUTLINES,
    instances_by_rank,
)
from datasets.shapes_drawing import OUTLINES, SceneStyle, draw_scene

SMALL = {"num_train": 20, "num_val": 10}


def folder_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


def test_the_benchmark_has_the_stated_tail(shapes_folder):
    train = ClassStatistics.from_index(read_shapes(shapes_folder, split="train", annotation_format="lvis"))
    val = ClassStatistics.from_index(read_shapes(shapes_folder, split="val", annotation_format="lvis"))
    assert len(train.names) == 30 and train.instances.sum() == 560 * 6
    assert train.instances.max() > 1000 and train.instances.min() == 2
    assert list(train.groups).count("r") >= 8 and set(train.groups) == {"r", "c", "f"}
    assert val.instances.min() >= 60 and list(val.groups) == list(train.groups)
    # The stated law, up to the common scale and rounding, for counts above the minimum of two.
    ranked = np.sort(train.instances)[::-1].astype(float)
    law = (9.0 / (np.arange(1, 31) + 8)) ** 4.5
    np.testing.assert_allclose(ranked[:15] / ranked[0], law[:15], rtol=0.06)


def test_the_three_formats_agree(shapes_folder):
    coco, lvis, voc = (
        read_shapes(shapes_folder, split="train", annotation_format=form) for form in ("coco", "lvis", "voc")
    )
    np.testing.assert_array_equal(coco.boxes, lvis.boxes)
    np.testing.assert_array_equal(coco.labels, lvis.labels)
    groups = [ClassStatistics.from_index(index) for index in (coco, lvis, voc)]
    assert list(groups[0].groups) == list(groups[1].groups)
    by_name = [dict(zip(g.names, zip(g.instances, g.images, strict=True), strict=True)) for g in groups]
    assert by_name[0] == by_name[1] == by_name[2]
    with pytest.raises(ValueError, match="'coco', 'lvis' or 'voc', not 'yolo'"):
        read_shapes(shapes_folder, split="train", annotation_format="yolo")


def test_splits_share_no_image(shapes_folder):
    train, val = (
        read_shapes(shapes_folder, split=split, annotation_format="coco") for split in ("train", "val")
    )
    assert not set(train.file_names) & set(val.file_names)
    assert not set(train.image_ids.tolist()) & set(val.image_ids.tolist())


def test_boxes_bound_the_polygons_and_are_inside_the_image(shapes_folder):
    content = json.loads((shapes_folder / "coco" / "train.json").read_text())
    for annotation in content["annotations"]:
        (flat,) = annotation["segmentation"]
        points = np.asarray(flat).reshape(-1, 2)
        x, y, w, h = annotation["bbox"]
        np.testing.assert_allclose(
            [x, y, x + w, y + h], [*points.min(axis=0), *points.max(axis=0)], atol=0.011
        )
        assert x >= 0 and y >= 0 and x + w <= 96 and y + h <= 96
        if annotation["id"] % 200 == 0:
            mask = np.zeros((960, 960), np.uint8)
            cv2.fillPoly(mask, [np.rint(points * 10).astype(np.int32)], 1)
            assert mask.sum() / 100 == pytest.approx(annotation["area"], rel=0.05)


def test_areas_are_exact_so_that_files_are_the_same_on_every_processor(shapes_folder):
    """Rounding halves by the last bit of a sum gave other files with other BLAS kernels."""
    content = json.loads((shapes_folder / "lvis" / "train.json").read_text(), parse_float=Fraction)
    for annotation in content["annotations"]:
        (flat,) = annotation["segmentation"]
        x, y = flat[::2], flat[1::2]
        twice = sum(x[i - 1] * y[i] - x[i] * y[i - 1] for i in range(len(x)))
        assert annotation["area"] == abs(twice) / 2


def test_boxes_are_tight_around_the_visible_parts():
    """The visible part of an object is the difference between the scene with and without it."""
    style = SceneStyle(96, 7.0, 15.0, 0.3)
    looks = [("circle", "white"), ("star", "white"), ("crescent", "white")]
    checked = 0
    for seed in range(12):
        image, objects = draw_scene([0, 1, 2, 0], looks, style, np.random.default_rng(seed))
        whole = np.zeros((96, 96), np.int32)
        for number, item in enumerate(objects, start=1):
            cv2.fillPoly(whole, [np.rint(item.polygon * 16 - 8).astype(np.int32)], number, shift=4)
        for number, item in enumerate(objects, start=1):
            rows, columns = np.nonzero(whole == number)
            visible = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            box = [*item.polygon.min(axis=0), *item.polygon.max(axis=0)]
            np.testing.assert_allclose(visible, box, atol=1.6)
            assert len(rows) >= 0.6 * polygon_area(item.polygon)
            # White objects are bright inside their polygons.
            assert np.median(image[rows, columns]) > 180
            checked += 1
    assert checked == 48


def test_the_same_seed_gives_the_same_files_and_another_seed_another_ranking(tmp_path):
    first = generate_shapes(tmp_path / "a", seed=5, **SMALL)
    second = generate_shapes(tmp_path / "b", seed=5, **SMALL)
    other = generate_shapes(tmp_path / "a", seed=6, **SMALL)
    assert first.name == second.name != other.name
    assert folder_hash(first) == folder_hash(second) != folder_hash(other)
    instances = [
        ClassStatistics.from_index(read_shapes(f, split="train", annotation_format="coco")).instances
        for f in (first, other)
    ]
    np.testing.assert_array_equal(np.sort(instances[0]), np.sort(instances[1]))
    assert (instances[0] != instances[1]).any()


def test_a_finished_set_is_not_generated_again(tmp_path):
    folder = generate_shapes(tmp_path, **SMALL)
    (folder / "JPEGImages" / "000001.png").unlink()
    assert generate_shapes(tmp_path, **SMALL) == folder
    assert not (folder / "JPEGImages" / "000001.png").exists()


def _generate(root: str, barrier, queue) -> None:
    barrier.wait()
    queue.put(str(generate_shapes(root, **SMALL)))


def test_two_concurrent_processes_generate_one_complete_set(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(2), context.Queue()
    workers = [
        context.Process(target=_generate, args=(str(tmp_path / "x"), barrier, queue)) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    folders = {queue.get() for _ in workers}
    assert len(folders) == 1
    assert [path.name for path in (tmp_path / "x").iterdir()] == [Path(folders.pop()).name]
    alone = generate_shapes(tmp_path / "y", **SMALL)
    assert folder_hash(tmp_path / "x" / alone.name) == folder_hash(alone)


def test_an_interrupted_generation_leaves_no_files(tmp_path, monkeypatch):
    calls = []

    def full_disk(path, *_):
        calls.append(path)
        if len(calls) == 8:
            raise OSError("No space left on device")
        return True

    monkeypatch.setattr(cv2, "imwrite", full_disk)
    with pytest.raises(OSError, match="No space left"):
        generate_shapes(tmp_path / "x", **SMALL)
    assert list((tmp_path / "x").iterdir()) == []


def test_a_folder_that_cannot_be_written_names_the_settings(tmp_path):
    (tmp_path / "shapes").write_text("")  # also stops root, unlike the permissions of a folder
    with pytest.raises(
        OSError, match=r"shapes/.* cannot be generated \(.*\); set paths.cache or dataset.root"
    ):
        generate_shapes(tmp_path / "shapes")


def test_pretraining_classes_are_different_and_balanced(tmp_path):
    assert not set(BENCHMARK_OUTLINES) & {*PRETRAINING_OUTLINES, *MORE_PRETRAINING_OUTLINES}
    assert not set(BENCHMARK_FILLS) & {*PRETRAINING_FILLS, *MORE_PRETRAINING_FILLS}
    folder = generate_pretraining_shapes(tmp_path, num_train=40, num_val=32, more_classes=True)
    statistics = ClassStatistics.from_index(read_shapes(folder, split="train", annotation_format="coco"))
    assert len(statistics.names) == 96
    assert statistics.instances.min() == 2 and statistics.instances.max() == 3


def test_all_outlines_are_different():
    """Two centred outlines overlap by at most 88 % of their union at any rotation."""
    masks = {}
    for name, points in OUTLINES.items():
        for angle in np.arange(0, 360, 15):
            turned = points @ cv2.getRotationMatrix2D((0, 0), float(angle), 1.0)[:, :2].T
            centred = turned - (turned.min(axis=0) + turned.max(axis=0)) / 2
            canvas = np.zeros((48, 48), np.uint8)
            cv2.fillPoly(canvas, [np.rint(centred * 20 + 24).astype(np.int32)], 1)
            masks.setdefault(name, []).append(canvas.astype(bool))
    worst = {}
    for name in OUTLINES:
        for other in OUTLINES:
            if name < other:
                worst[(name, other)] = max(
                    (masks[name][0] & turned).sum() / (masks[name][0] | turned).sum()
                    for turned in masks[other]
                )
    assert max(worst.values()) < 0.88, max(worst, key=worst.get)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(0, 3000), st.floats(0, 6))
def test_instances_by_rank_use_all_objects_and_do_not_increase(num_classes, more, exponent):
    total = 2 * num_classes + more
    counts = instances_by_rank(num_classes, total, exponent)
    assert counts.sum() == total and counts.min() >= 2
    assert (np.diff(counts) <= 0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_val": 9}, "num_val = 9 images"),
        ({"outlines": ("blob",)}, "different outlines from circle"),
        ({"fills": ("red", "red")}, "different fills from red"),
        ({"num_train": 9}, "num_train = 9 images of 6 objects cannot show each of 30 classes 2 times"),
        ({"image_size": 32, "num_train": 60, "num_val": 10}, "do not fit into 32 px"),
    ],
)
def test_impossible_settings_are_rejected(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        generate_shapes(tmp_path / "x", **settings)
    assert not (tmp_path / "x").exists() or list((tmp_path / "x").iterdir()) == []


def test_frequency_groups_follow_the_rule_of_lvis():
    assert frequency_groups(np.array([0, 1, 10, 11, 100, 101])) == ["r", "r", "r", "c", "c", "f"]
