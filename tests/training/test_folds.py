"""Two-fold evaluation compared with pycocotools on the union of the halves, and with manual counts."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from afl.tracking.record import Record, read_record, write_record
from afl.training.build import ConfigError
from afl.training.folds import Fold, evaluate_folds, fold_record

NAMES = ["one", "two", "three", "four"]


def half(seed, image_ids, labels):
    """Objects with the given labels in every image, and detections close to them."""
    rng = np.random.default_rng(seed)
    annotations, detections = [], []
    for image_id in image_ids:
        for label in labels:
            box = rng.uniform(10, 40, 4)
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image_id, "category_id": label,
                 "bbox": box.tolist(), "area": float(box[2] * box[3]), "iscrowd": 0}
            )  # fmt: skip
            for _ in range(2):
                near = (box + rng.normal(0, 3, 4)).tolist()
                detections.append(
                    {"image_id": image_id, "category_id": label, "bbox": near, "score": float(rng.random())}
                )
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 100, "height": 100} for i in image_ids]
    categories = [{"id": i, "name": name} for i, name in enumerate(NAMES, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}, detections


@pytest.fixture
def folds():
    # Only the first half has objects of class four, so the fold that trains on the second half has none.
    first, second = half(0, [1, 2, 3], [1, 2, 3, 4]), half(1, [4, 5, 6, 7], [1, 2, 3])
    return [Fold(*first, np.array([150, 60, 5, 0])), Fold(*second, np.array([60, 61, 14, 3]))]


def official(folds):
    """The precision (T, R, C) and the twelve figures of pycocotools on the union."""
    union = {key: [] for key in ("images", "annotations")} | {"categories": folds[0].truth["categories"]}
    detections = []
    for fold in folds:
        union["images"] += fold.truth["images"]
        union["annotations"] += fold.truth["annotations"]
        detections += fold.detections
    union = copy.deepcopy(union)
    for number, annotation in enumerate(union["annotations"], start=1):
        annotation["id"] = number
    truth = COCO()
    with contextlib.redirect_stdout(io.StringIO()):
        truth.dataset = union
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(detections)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.eval["precision"][..., 0, -1], evaluation.stats


def test_the_union_is_evaluated_once(folds):
    folded = evaluate_folds(folds)
    precision, stats = official(folds)
    assert [folded.metrics[name] for name in ("AP", "AP50", "AP75")] == pytest.approx(
        stats[:3].tolist(), abs=1e-6
    )
    per_class = precision.mean(axis=(0, 1))
    assert list(folded.per_class.values()) == pytest.approx(per_class.tolist(), abs=1e-6)
    # Mean training images are 105, 60.5, 9.5 and 1.5.
    assert folded.groups == {"one": "f", "two": "c", "three": "r", "four": "r"}
    assert folded.left_out == ("four",)
    assert folded.metrics["AP_f"] == pytest.approx(per_class[0], abs=1e-6)
    assert folded.metrics["AP_r"] == pytest.approx(per_class[2], abs=1e-6)
    assert per_class[2] != pytest.approx(per_class[2:].mean(), abs=1e-3)


def test_the_order_of_the_folds_does_not_matter(folds):
    forward, backward = evaluate_folds(folds), evaluate_folds(folds[::-1])
    assert forward.metrics == pytest.approx(backward.metrics)


def test_folds_that_do_not_belong_together_are_rejected(folds):
    with pytest.raises(ValueError, match="validate the same image"):
        evaluate_folds([folds[0], folds[0]])
    crossed = Fold(folds[0].truth, folds[1].detections, folds[0].train_images)
    with pytest.raises(ValueError, match="image_id = 4, which its fold does not validate"):
        evaluate_folds([crossed, folds[1]])


@pytest.fixture
def runs(folds, tmp_path):
    """Run directories as the training command writes them, for a tiny set in two halves."""
    for name, fold in zip("ba", folds, strict=True):
        (tmp_path / f"{name}.json").write_text(json.dumps(fold.truth))
    folders = []
    for fold, (name, other) in zip(folds, ("ab", "ba"), strict=True):
        dataset = {
            split: {
                "_target_": "datasets.read_coco",
                "annotations": str(tmp_path / f"{file}.json"),
                "image_root": str(tmp_path / "images"),
            }
            for split, file in (("train", name), ("val", other))
        } | {"name": "tiny", "fold": name, "max_detections": 100}
        config = {"dataset": dataset, "subset": None, "trainer": {"evaluator": "official"}, "seed": 0}
        folder = tmp_path / f"run-{name}"
        folder.mkdir()
        (folder / "config.yaml").write_text(json.dumps(config))
        (folder / "detections.json").write_text(json.dumps(fold.detections))
        record = Record(
            f"tiny-fcos-fl-s0-fold_{name}",
            "finished",
            "tiny",
            "fcos",
            "fl",
            0,
            config,
            metrics={"AP": 0.5},
            steps=10,
            train_seconds=2.0,
        )
        write_record(folder / "record.json", record)
        folders.append(folder)
    return folders


@pytest.fixture
def images(tmp_path):
    (tmp_path / "images").mkdir()
    for image in range(1, 8):
        cv2.imwrite(str(tmp_path / "images" / f"{image}.jpg"), np.zeros((100, 100, 3), np.uint8))


def test_both_runs_become_one_record(images, runs, folds):
    record = fold_record(runs)
    assert record.metrics["AP"] == pytest.approx(official(folds)[1][0], abs=1e-6)
    assert record.key == "tiny-fcos-fl-s0-fold_a+tiny-fcos-fl-s0-fold_b"
    assert record.steps == 20 and record.train_seconds == 4.0
    assert "fold" not in record.config["dataset"]
    assert record.protocol["folds"] == "2 together; group means leave out 1 classes, without four"


@pytest.mark.parametrize("others", ["", "x"])
def test_a_record_names_the_devices_and_sources_of_all_folds(images, runs, others):
    for folder, name in zip(runs, ("one", f"one{others}"), strict=True):
        path = folder / "record.json"
        record = replace(
            read_record(path),
            environment={"device": f"gpu {name}", "cpu": "c"},
            git={"source": name, "sha": "1234567", "dirty": False},
        )
        write_record(path, record)
    record = fold_record(runs)
    if others:
        assert record.environment == {"device": "gpu one+gpu onex", "cpu": "c"}
        assert record.git == {"source": "one+onex", "sha": None, "dirty": None}
    else:
        assert record.environment == {"device": "gpu one", "cpu": "c"}
        assert record.git == {"source": "one", "sha": "1234567", "dirty": False}


def test_runs_that_differ_in_more_than_the_fold_are_rejected(runs, tmp_path):
    with pytest.raises(ConfigError, match="needs the runs of both folds"):
        fold_record(runs[:1])
    path = runs[1] / "detections.json"
    kept = path.read_bytes()
    path.unlink()
    with pytest.raises(ConfigError, match=r"has no detections.json"):
        fold_record(runs)
    path.write_bytes(kept)
    config = json.loads((runs[1] / "config.yaml").read_text()) | {"seed": 1}
    (runs[1] / "record.json").unlink()
    write_record(
        runs[1] / "record.json",
        Record("tiny-fcos-fl-s1-fold_b", "finished", "tiny", "fcos", "fl", 1, config, metrics={"AP": 0.5}),
    )
    with pytest.raises(ConfigError, match="differ in more than dataset.fold"):
        fold_record(runs)
