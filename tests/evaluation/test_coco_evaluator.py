"""COCO figures compared with the published ones of pycocotools on its sample, and the fast backend with the official one."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import sys

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from afl.evaluation.coco_evaluator import CocoEvaluator
from afl.evaluation.evaluator import METRICS
from datasets import read_coco


def run_pycocotools(ground_truth, results, category_ids=None, max_detections=100):
    """The official package as its own demo calls it: loadRes, evaluate, accumulate, summarize."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = json.loads(json.dumps(ground_truth))
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(json.loads(json.dumps(results))), "bbox")
        evaluation.params.maxDets = [1, 10, max_detections]
        if category_ids is not None:
            evaluation.params.catIds = category_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def official_figures(evaluation):
    names = ("AP", "AP50", "AP75", "AP_s", "AP_m", "AP_l", None, None, "AR")
    return {
        name: None if value == -1 else float(value)
        for name, value in zip(names, evaluation.stats, strict=False)
        if name
    }


@pytest.mark.parametrize("backend", ["official", "fast"])
def test_figures_equal_the_coco_api_sample(shared_data, feed, backend):
    folder = shared_data / "evaluators" / "coco"
    expected = json.loads((folder / "expected.json").read_text())
    ground_truth = json.loads((folder / expected["annotations"]).read_text())
    evaluator = CocoEvaluator(ground_truth, backend=backend)
    feed(evaluator, ground_truth, json.loads((folder / expected["results"]).read_text()))
    result = evaluator.evaluate()
    figures = expected["bbox"]
    for name, value in zip(("AP", "AP50", "AP75", "AP_s", "AP_m", "AP_l"), figures, strict=False):
        assert result[name] == pytest.approx(value, abs=1e-6), name
    assert result["AR"] == pytest.approx(figures[8], abs=1e-6)


def test_the_reader_changes_no_figure_of_the_coco_api_sample(shared_data, feed, monkeypatch):
    folder = shared_data / "evaluators" / "coco"
    expected = json.loads((folder / "expected.json").read_text())
    path, results = folder / expected["annotations"], json.loads((folder / expected["results"]).read_text())
    monkeypatch.setattr(
        "datasets.coco.without_bad_images", lambda index, *_: index
    )  # the sample has no images
    figures = []
    for truth in (json.loads(path.read_text()), read_coco(path, folder).coco_dict()):
        evaluator = CocoEvaluator(truth)
        feed(evaluator, truth, results)
        figures.append(evaluator.evaluate())
    assert figures[0].pop("per_class") == pytest.approx(figures[1].pop("per_class"), abs=1e-12)
    assert figures[0] == pytest.approx(figures[1], abs=1e-12)


@pytest.mark.parametrize("backend", ["official", "fast"])
@pytest.mark.parametrize("seed", range(4))
def test_equals_pycocotools_on_random_data(random_set, feed, backend, seed):
    ground_truth, results = random_set(seed)
    official = run_pycocotools(ground_truth, results)
    for annotation in ground_truth["annotations"][::2]:  # difficult objects are ignored like crowd regions
        annotation |= {"iscrowd": 0, "difficult": annotation["iscrowd"]}
    evaluator = CocoEvaluator(ground_truth, backend=backend)
    feed(evaluator, ground_truth, results)
    result = evaluator.evaluate()
    for name, value in official_figures(official).items():
        assert result[name] == pytest.approx(value, abs=1e-9), name
    rising = sorted(category["id"] for category in ground_truth["categories"])
    for category in ground_truth["categories"]:
        precision = official.eval["precision"][:, :, rising.index(category["id"]), 0, 2]
        expected = precision.mean() if precision.max() > -1 else None
        assert result["per_class"][category["name"]] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("backend", ["official", "fast"])
def test_the_cap_on_detections_equals_pycocotools(random_set, feed, backend):
    ground_truth, results = random_set(11, images=10, classes=2, detections=300)
    evaluator = CocoEvaluator(ground_truth, max_detections=20, backend=backend)
    feed(evaluator, ground_truth, results)
    result = evaluator.evaluate()
    official = run_pycocotools(ground_truth, results, max_detections=20)
    precision = official.eval["precision"][..., 0, 2]
    assert result["AP"] == pytest.approx(precision[precision > -1].mean(), abs=1e-9)
    uncapped = run_pycocotools(ground_truth, results, max_detections=1000).eval["precision"][..., 0, 2]
    assert abs(result["AP"] - uncapped[uncapped > -1].mean()) > 1e-4  # otherwise the limit was not tested


def test_group_means_equal_pycocotools_on_the_classes_of_a_group(random_set, feed):
    ground_truth, results = random_set(3)
    ids = [category["id"] for category in ground_truth["categories"]]
    groups = ["f", "r", "r", "c", "f", "r"]
    evaluator = CocoEvaluator(ground_truth, groups=groups)
    feed(evaluator, ground_truth, results)
    result = evaluator.evaluate()
    for group in "rcf":
        chosen = [number for number, g in zip(ids, groups, strict=True) if g == group]
        expected = run_pycocotools(ground_truth, results, category_ids=chosen).stats[0]
        assert result[f"AP_{group}"] == pytest.approx(expected, abs=1e-9)


def test_results_file_gives_the_same_figures_to_pycocotools(random_set, feed):
    ground_truth, results = random_set(5)
    evaluator = CocoEvaluator(ground_truth)
    feed(evaluator, ground_truth, results)
    written = json.loads(evaluator.detections_json())
    assert {row["category_id"] for row in written} <= {
        category["id"] for category in ground_truth["categories"]
    }
    figures = official_figures(run_pycocotools(ground_truth, written))
    result = evaluator.evaluate()
    assert {name: result[name] for name in figures} == pytest.approx(figures, abs=1e-9)


def test_results_file_restores_float32_boxes(one_class, detections):
    rng = np.random.default_rng(0)
    boxes = np.sort(rng.uniform(0, 500, (50, 2, 2)).astype(np.float32), axis=1).reshape(50, 4)
    evaluator = CocoEvaluator(one_class)
    found = detections(boxes, rng.random(50).astype(np.float32), np.zeros(50))
    found.boxes = boxes
    evaluator.process([7], [found])
    written = json.loads(evaluator.detections_json())
    corner = np.array([row["bbox"][:2] for row in written], np.float32)
    assert (corner == boxes[:, :2]).all()
    assert (np.array([row["score"] for row in written], np.float32) == found.scores).all()


def test_annotation_id_zero_does_not_mean_unmatched(one_class, detections):
    for annotation in one_class["annotations"]:
        annotation["id"] -= 1
    evaluator = CocoEvaluator(one_class)
    evaluator.process([7], [detections([[0, 0, 40, 40], [50, 50, 90, 90]], [0.9, 0.8], [0, 0])])
    assert evaluator.evaluate()["AP"] == pytest.approx(1.0)


def test_fast_backend_does_not_replace_pycocotools(one_class):
    CocoEvaluator(one_class, backend="fast").evaluate()
    assert sys.modules["pycocotools.coco"].COCO is COCO
    assert COCO.__module__ == "pycocotools.coco"


@pytest.mark.parametrize("backend", ["official", "fast"])
def test_no_detections_give_zero_and_undefined_figures_are_none(one_class, backend):
    evaluator = CocoEvaluator(one_class, backend=backend)
    result = evaluator.evaluate()
    assert set(result) == {*METRICS, "per_class"}
    assert result["AP"] == result["AR"] == result["AP_m"] == result["per_class"]["thing"] == 0
    assert [result[name] for name in ("AP_s", "AP_l", "AP_r", "AP_c", "AP_f")] == [None] * 5


@pytest.mark.parametrize("backend", ["official", "fast"])
def test_a_set_without_annotations_has_no_figures(one_class, detections, backend):
    one_class["annotations"] = []
    evaluator = CocoEvaluator(one_class, backend=backend)
    evaluator.process([7], [detections([[0, 0, 40, 40]], [0.9], [0])])
    result = evaluator.evaluate()
    assert result.pop("per_class") == {"thing": None}
    assert set(result.values()) == {None}


def test_evaluation_prints_nothing(one_class, capsys):
    CocoEvaluator(one_class).evaluate()
    CocoEvaluator(one_class, backend="fast").evaluate()
    assert capsys.readouterr() == ("", "")


def test_a_fork_after_an_evaluation_is_rejected_and_does_not_hang(one_class):
    """multiprocessing's fork copies hotcoco's pool without its threads."""
    CocoEvaluator(one_class).evaluate()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child():
        try:
            CocoEvaluator(one_class).evaluate()
        except RuntimeError as error:
            sender.send(str(error))

    process = context.Process(target=child)
    process.start()
    assert receiver.poll(30), "the fork waits"
    assert "spawn" in receiver.recv()
    process.join()
