"""Shared behaviour of the evaluators: bad input is named, merged ranks equal one process, JSON restores detections."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

from afl.evaluation.coco_evaluator import CocoEvaluator
from afl.evaluation.evaluator import DetectionArrays
from afl.evaluation.groups import group_means
from afl.evaluation.lvis_evaluator import LvisEvaluator
from afl.evaluation.voc_evaluator import VocEvaluator


def replace(**changes):
    return {"boxes": [[0, 0, 40, 40]], "scores": [0.9], "labels": [0]} | changes


@pytest.mark.parametrize(
    "found, message",
    [
        (replace(scores=[np.nan]), "image 7.*score is not finite"),
        (replace(scores=[np.inf]), "image 7.*score is not finite"),
        (replace(boxes=[[0, 0, np.nan, 40]]), "image 7.*box is not finite"),
        (replace(boxes=[[40, 0, 0, 40]]), "image 7.*x1, y1, x2, y2"),
        (replace(labels=[1]), "image 7.*labels run from 1 to 1"),
        (replace(labels=[-1]), "image 7.*labels run from -1"),
        (replace(scores=[0.9, 0.8]), "image 7.*needed"),
    ],
)
def test_bad_detections_are_rejected_with_their_image(one_class, detections, found, message):
    evaluator = CocoEvaluator(one_class)
    with pytest.raises(ValueError, match=message):
        evaluator.process([7], [detections(**found)])
    assert len(evaluator.detections()) == 0


def test_unknown_and_repeated_images_are_rejected(one_class, detections):
    evaluator = CocoEvaluator(one_class)
    found = detections(**replace())
    with pytest.raises(ValueError, match="image 8"):
        evaluator.process([8], [found])
    evaluator.process([7], [found])
    with pytest.raises(ValueError, match=r"image 7.*reset\(\)"):
        evaluator.process([7], [found])
    with pytest.raises(ValueError, match="2 image ids came with detections of 1"):
        evaluator.process([7, 9], [found])
    evaluator.reset()
    evaluator.process([7], [found])
    assert len(evaluator.detections()) == 1


def test_images_that_were_not_processed_are_reported(one_class, caplog):
    CocoEvaluator(one_class).evaluate()
    assert "2 of 2 images were not processed" in caplog.text


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d.pop("categories"), "no 'categories'"),
        (lambda d: d["images"].append(d["images"][0]), "image id 7 more than once"),
        (lambda d: d["categories"].append({"id": 6, "name": "thing"}), "class name 'thing' more than once"),
        (lambda d: d["annotations"][0].update(image_id=3), "annotation 1 .* image_id 3"),
        (lambda d: d["annotations"][0].update(category_id=3), "annotation 1 .* category_id 3"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2, 3]), "annotation 1 .* four numbers"),
    ],
)
def test_bad_ground_truth_is_rejected_with_its_record(one_class, change, message):
    change(one_class)
    with pytest.raises(ValueError, match=message):
        CocoEvaluator(one_class)


def test_groups_must_fit_the_classes(one_class):
    with pytest.raises(ValueError, match="2 frequency groups were given for 1 classes"):
        CocoEvaluator(one_class, groups=["r", "c"])
    with pytest.raises(ValueError, match="'thing' has frequency group 'rare'"):
        CocoEvaluator(one_class, groups=["rare"])


def test_tensors_of_any_float_type_equal_arrays(one_class, detections):
    reference = CocoEvaluator(one_class)
    reference.process([7], [detections([[0, 0, 40, 40], [48, 50, 90, 90]], [0.75, 0.5], [0, 0])])
    for kind in (torch.float32, torch.float64, torch.bfloat16):
        evaluator = CocoEvaluator(one_class)
        found = detections([], [], [])
        found.boxes = torch.tensor([[0, 0, 40, 40], [48, 50, 90, 90]], dtype=kind, requires_grad=True)
        found.scores = torch.tensor([0.75, 0.5], dtype=kind)
        found.labels = torch.tensor([0, 0])
        evaluator.process(torch.tensor([7]), [found])
        assert evaluator.evaluate() == reference.evaluate()


@pytest.mark.parametrize("kind", [CocoEvaluator, LvisEvaluator, VocEvaluator])
def test_files_of_two_ranks_equal_one_process(random_set, feed, tmp_path, kind):
    ground_truth, results = random_set(1, federated=True)
    whole = kind(ground_truth)
    feed(whole, ground_truth, results)
    paths = []
    # the last two images are assigned to both ranks, as by a sampler that pads its batches
    for rank, images in enumerate((ground_truth["images"][::2], ground_truth["images"][1::2])):
        images = images + ground_truth["images"][:2]
        part = {image["id"]: image for image in images}
        evaluator = kind(ground_truth)
        mine = [result for result in results if result["image_id"] in part]
        feed(evaluator, ground_truth | {"images": list(part.values())}, mine)
        paths.append(tmp_path / f"rank{rank}.npz")
        evaluator.save(paths[-1])
    merged = kind(ground_truth)
    feed(merged, ground_truth, results[:9])  # they are replaced
    merged.merge(paths)
    assert merged.detections_json() == whole.detections_json()
    assert merged.evaluate() == whole.evaluate()


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_the_json_file_restores_every_detection(random_set, detections, kind):
    ground_truth, _ = random_set(0)
    rng = np.random.default_rng(0)
    evaluator, restored = CocoEvaluator(ground_truth), CocoEvaluator(ground_truth)
    for image in ground_truth["images"]:
        boxes = rng.uniform(0, 300, (5, 4)).astype(kind)
        boxes[:, 2:] += 300
        found = detections([], rng.uniform(0, 1, 5).astype(np.float32), rng.integers(0, 6, 5))
        found.boxes = boxes
        evaluator.process([image["id"]], [found])
    restored.process_results(json.loads(evaluator.detections_json()))
    one, other = evaluator.detections(), restored.detections()
    assert one.boxes.dtype == kind
    # x + w - x may differ from w in the last digit.
    np.testing.assert_allclose(other.boxes, one.boxes, rtol=0, atol=1e-4 if kind is np.float32 else 1e-12)
    assert (other.boxes[:, :2].astype(kind) == one.boxes[:, :2]).all() and (other.scores == one.scores).all()
    assert (other.label == one.label).all() and (other.image == one.image).all()


def test_damaged_and_foreign_files_of_ranks_are_rejected(one_class, random_set, feed, tmp_path):
    ground_truth, results = random_set(1)
    foreign = CocoEvaluator(ground_truth)
    feed(foreign, ground_truth, results)
    path = tmp_path / "rank0.npz"
    foreign.save(path)
    with pytest.raises(ValueError, match="another data set"):
        CocoEvaluator(one_class).merge([path])
    whole = path.read_bytes()
    for damaged in (whole[:-200], whole[:50] + b"?" + whole[51:], b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="rank0.npz cannot be read .*checksum.*evaluate again"):
            CocoEvaluator(ground_truth).merge([path])
    with pytest.raises(FileNotFoundError):
        CocoEvaluator(ground_truth).merge([tmp_path / "rank1.npz"])


@pytest.mark.parametrize(
    "change",
    [
        lambda truth: truth["images"].append({"id": 10**6}),
        lambda truth: truth["categories"][0].update(name="another"),
        lambda truth: truth["annotations"][0].update(bbox=[1, 2, 3, 4]),
    ],
    ids=["image", "class", "box"],
)
def test_files_of_another_data_set_of_the_same_size_are_rejected(random_set, tmp_path, change):
    ground_truth, _ = random_set(1)
    CocoEvaluator(ground_truth).save(tmp_path / "rank0.npz")
    other = copy.deepcopy(ground_truth)
    change(other)
    same = copy.deepcopy(ground_truth)
    CocoEvaluator(same).merge([tmp_path / "rank0.npz"])
    with pytest.raises(ValueError, match="rank0.npz belongs to another data set.*same files"):
        CocoEvaluator(other).merge([tmp_path / "rank0.npz"])


def test_the_limit_per_image_equals_sorting_each_image(random_set):
    rng = np.random.default_rng(0)
    image = np.sort(rng.integers(0, 5, 200)).astype(np.int32)
    scores = (rng.integers(0, 20, 200) / 20).astype(np.float32)
    rows = np.arange(200)
    found = DetectionArrays(image=image, label=rows.astype(np.int32), boxes=np.zeros((200, 4)), scores=scores)
    expected = []
    for number in range(5):
        mine = [row for row in rows if image[row] == number]
        expected += sorted(sorted(mine, key=lambda row: -scores[row])[:17])
    assert found.best_per_image(17).label.tolist() == expected


def test_group_means_equal_a_manual_computation():
    per_class = {"a": 0.5, "b": None, "c": 0.1, "d": 0.3, "e": None}
    assert group_means(per_class, ["r", "r", "c", "c", "f"]) == {
        "AP_r": 0.5,
        "AP_c": pytest.approx(0.2),
        "AP_f": None,
    }
    assert group_means(per_class, None) == {"AP_r": None, "AP_c": None, "AP_f": None}


def _evaluator(kind, truth, limit):
    truth["categories"][0]["frequency"] = "f"
    for image in truth["images"]:
        image |= {"neg_category_ids": [5] if image["id"] == 9 else [], "not_exhaustive_category_ids": []}
    if kind == "coco":
        return CocoEvaluator(truth, max_detections=limit)
    if kind == "lvis":
        return LvisEvaluator(truth, max_detections=limit)
    return VocEvaluator(truth, metric="area")


@pytest.mark.parametrize("kind", ["coco", "lvis", "voc"])
@pytest.mark.parametrize(
    ("in_empty_image", "surplus", "expected"),
    [
        # Both objects are found first, and later detections do not lower AP.
        (0.1, 0, 1.0),
        # A false detection before both: precision 1/2, then 2/3, which interpolation gives to every recall.
        (0.99, 0, 2 / 3),
        # There are more detections than the limit, and the best ones are kept.
        (0.1, 50, 1.0),
        (None, 0, 1.0),
    ],
)
def test_one_class_an_empty_image_and_the_limit_have_known_values(
    one_class, detections, kind, in_empty_image, surplus, expected
):
    evaluator = _evaluator(kind, one_class, limit=2)
    right = [[0, 0, 40, 40], [50, 50, 90, 90]]
    found = detections(right + [[0, 0, 5, 5]] * surplus, [0.9, 0.8] + [0.05] * surplus, [0] * (2 + surplus))
    wrong = [] if in_empty_image is None else [[1, 1, 30, 30]]
    empty = detections(wrong, [in_empty_image] * len(wrong), [0] * len(wrong))
    evaluator.process([7, 9], [found, empty])
    metrics = evaluator.evaluate()
    assert metrics["AP50"] == pytest.approx(expected, abs=1e-9)
    assert metrics["per_class"].keys() == {"thing"}


@pytest.mark.parametrize("kind", ["coco", "lvis", "voc"])
def test_all_evaluators_reject_scores_that_are_not_finite(one_class, detections, kind):
    with pytest.raises(ValueError, match="detections of image 7: a score is not finite"):
        _evaluator(kind, one_class, limit=2).process([7], [detections([[0, 0, 9, 9]], [np.nan], [0])])
