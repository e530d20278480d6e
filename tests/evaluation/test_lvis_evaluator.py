"""LVIS figures compared with those of the package lvis on its sample, and on random federated sets."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import numpy as np
import pytest

from afl.evaluation.lvis_evaluator import LvisEvaluator

pytestmark = pytest.mark.filterwarnings("ignore:The 'warn' method is deprecated:DeprecationWarning")

FIGURES = {
    "AP": "AP",
    "AP50": "AP50",
    "AP75": "AP75",
    "AP_s": "APs",
    "AP_m": "APm",
    "AP_l": "APl",
    "AP_r": "APr",
    "AP_c": "APc",
    "AP_f": "APf",
}


class NumpyOf2020:
    """numpy with ``np.float``, an alias of ``float`` that lvis 0.5.3 uses."""

    float = float

    def __getattr__(self, name):
        return getattr(np, name)


@pytest.fixture
def run_lvis(monkeypatch):
    """The official package, with its use of ``np.float`` patched during a test."""
    lvis = pytest.importorskip("lvis")
    monkeypatch.setattr(sys.modules["lvis.eval"], "np", NumpyOf2020())

    def run(ground_truth, results, max_detections):
        truth = lvis.LVIS.__new__(lvis.LVIS)
        truth.logger = sys.modules["logging"].getLogger("lvis")
        truth.dataset = copy.deepcopy(ground_truth)
        truth._create_index()
        found = lvis.LVISResults(truth, copy.deepcopy(results), max_dets=max_detections)
        evaluation = lvis.LVISEval(truth, found, "bbox")
        evaluation.params.max_dets = max_detections
        evaluation.run()
        return evaluation

    return run


@pytest.mark.parametrize("backend", ["official", "fast"])
@pytest.mark.parametrize("limit", [300, 20])
def test_figures_equal_the_lvis_sample(shared_data, feed, limit, backend):
    folder = shared_data / "evaluators" / "lvis"
    expected = json.loads((folder / "expected.json").read_text())
    ground_truth = json.loads((folder / expected["annotations"]).read_text())
    evaluator = LvisEvaluator(ground_truth, max_detections=limit, backend=backend)
    feed(evaluator, ground_truth, json.loads((folder / expected["results"]).read_text()))
    result = evaluator.evaluate()
    figures = expected["bbox"][f"max_dets={limit}"]
    for ours, theirs in (FIGURES | {"AR": f"AR@{limit}"}).items():
        assert result[ours] == pytest.approx(figures[theirs], abs=1e-6), ours


@pytest.mark.parametrize("backend", ["official", "fast"])
@pytest.mark.parametrize("seed", range(4))
def test_equals_lvis_on_random_federated_data(random_set, feed, run_lvis, seed, backend):
    ground_truth, results = random_set(seed, crowds=False, federated=True)
    evaluator = LvisEvaluator(ground_truth, backend=backend)
    feed(evaluator, ground_truth, results)
    compare(evaluator, run_lvis(ground_truth, results, 300), ground_truth)


@pytest.mark.parametrize("backend", ["official", "fast"])
def test_equals_lvis_with_more_than_300_detections_per_image(random_set, feed, run_lvis, backend):
    ground_truth, results = random_set(7, images=8, classes=9, detections=900, crowds=False, federated=True)
    evaluator = LvisEvaluator(ground_truth, backend=backend)
    feed(evaluator, ground_truth, results)
    assert np.bincount(evaluator.detections().image).max() > 300
    compare(evaluator, run_lvis(ground_truth, results, 300), ground_truth)
    without_cut = run_lvis(ground_truth, results, 10_000).results["AP"]
    assert abs(evaluator.evaluate()["AP"] - without_cut) > 1e-4  # otherwise the limit was not tested


@pytest.mark.parametrize("backend", ["official", "fast"])
def test_equals_lvis_with_objects_without_area(random_set, feed, run_lvis, backend):
    ground_truth, results = random_set(9, crowds=False, federated=True)
    for annotation in ground_truth["annotations"][1::7]:
        annotation["area"] = 0.0
    evaluator = LvisEvaluator(ground_truth, backend=backend)
    feed(evaluator, ground_truth, results)
    compare(evaluator, run_lvis(ground_truth, results, 300), ground_truth)
    assert evaluator.backend == backend


def test_equals_lvis_with_ignored_objects_and_objects_without_area(random_set, feed, run_lvis):
    ground_truth, results = random_set(9, crowds=False, federated=True)
    for annotation in ground_truth["annotations"][::5]:
        annotation["ignore"] = 1
    for annotation in ground_truth["annotations"][1::7]:
        annotation["area"] = 0.0
    evaluator = LvisEvaluator(ground_truth)
    feed(evaluator, ground_truth, results)
    compare(evaluator, run_lvis(ground_truth, results, 300), ground_truth)
    assert evaluator.backend == "official"  # hotcoco does not support ignored objects with LVIS's rules


def compare(evaluator, official, ground_truth):
    result = evaluator.evaluate()
    for ours, theirs in (FIGURES | {"AR": f"AR@{official.params.max_dets}"}).items():
        expected = official.results[theirs]
        assert result[ours] == (None if expected == -1 else pytest.approx(expected, abs=1e-9)), ours
    rising = sorted(category["id"] for category in ground_truth["categories"])
    for category in ground_truth["categories"]:
        precision = official.eval["precision"][:, :, rising.index(category["id"]), 0]
        expected = precision.mean() if precision.max() > -1 else None
        assert result["per_class"][category["name"]] == pytest.approx(expected, abs=1e-9)


@pytest.fixture
def federated(one_class):
    for image in one_class["images"]:
        image |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    one_class["categories"] = [
        {"id": 5, "name": "thing", "frequency": "r"},
        {"id": 2, "name": "unchecked", "frequency": "f"},
    ]
    return one_class


def test_detections_of_negative_classes_lower_ap_and_those_of_unchecked_ones_do_not(federated, detections):
    found = [
        detections([[0, 0, 40, 40], [50, 50, 90, 90], [0, 0, 9, 9]], [0.8, 0.7, 0.9], [0, 0, 1]),
        detections([[0, 0, 40, 40]], [0.9], [0]),
    ]
    evaluator = LvisEvaluator(federated)
    evaluator.process([7, 9], found)
    result = evaluator.evaluate()
    assert (result["AP"], result["AP_r"], result["AP_f"]) == (pytest.approx(1.0), pytest.approx(1.0), None)
    federated["images"][1]["neg_category_ids"] = [5]
    evaluator = LvisEvaluator(federated)
    evaluator.process([7, 9], found)
    # one false positive above both true ones: precision 2/3 at every recall
    assert evaluator.evaluate()["AP"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("backend", ["official", "fast"])
def test_no_detections_give_zero(federated, backend):
    result = LvisEvaluator(federated, backend=backend).evaluate()
    assert (result["AP"], result["AR"], result["AP_r"], result["AP_c"]) == (0, 0, 0, None)


def test_files_in_other_formats_are_rejected(one_class, federated):
    del federated["images"][1]["neg_category_ids"]
    with pytest.raises(ValueError, match="image 9 .* neg_category_ids"):
        LvisEvaluator(federated)
    del federated["categories"][0]["frequency"]
    with pytest.raises(ValueError, match="frequency"):
        LvisEvaluator(federated)


def test_lvis_is_imported_late_and_does_not_change_logging_and_numpy():
    program = """
import logging, sys
import numpy as np
from afl.evaluation.lvis_evaluator import LvisEvaluator
assert "lvis" not in sys.modules
evaluator = LvisEvaluator({
    "images": [{"id": 1, "neg_category_ids": [], "not_exhaustive_category_ids": []}],
    "categories": [{"id": 1, "name": "a", "frequency": "f"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}],
}, backend="official")
evaluator.evaluate()
assert "lvis" in sys.modules
assert logging.getLogger().handlers == [] and logging.getLogger().level == logging.WARNING
assert not hasattr(np, "float")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
