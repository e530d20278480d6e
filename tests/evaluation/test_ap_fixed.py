"""AP without a limit per image compared with a slow, simple computation: pool a class's detections, cut, match, integrate."""

from __future__ import annotations

import numpy as np
import pytest

from afl.evaluation import CocoEvaluator, LvisEvaluator, VocEvaluator, evaluator
from afl.evaluation.groups import mean_defined

OVERLAPS = [0.5 + 0.05 * step for step in range(10)]


def iou(a, b) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def average_precision(hits: list[bool], total: int) -> float:
    """101-point AP of a ranked list of hits."""
    true, wanted = 0, []
    for rank, hit in enumerate(hits, start=1):
        true += hit
        wanted.append((true / total, true / rank))
    return (
        sum(
            max([precision for recall, precision in wanted if recall >= point / 100 - 1e-12], default=0.0)
            for point in range(101)
        )
        / 101
    )


def obvious(data, results, limit, federated) -> dict[str, float | None]:
    """AP of each class, by name."""
    found = {}
    for category in data["categories"]:
        number = category["id"]
        objects = {image["id"]: [] for image in data["images"]}
        for one in data["annotations"]:
            if one["category_id"] == number:
                objects[one["image_id"]].append(one["bbox"])
        pool = [
            one
            for image in data["images"]
            for one in results
            if one["image_id"] == image["id"] and one["category_id"] == number
        ]
        pool = sorted(pool, key=lambda one: -one["score"])[:limit]
        loose = set()
        if federated:
            images = {image["id"]: image for image in data["images"]}
            pool = [
                one
                for one in pool
                if objects[one["image_id"]] or number in images[one["image_id"]]["neg_category_ids"]
            ]
            loose = {i for i, image in images.items() if number in image["not_exhaustive_category_ids"]}
        # LVIS drops detections without area.
        pool = [one for one in pool if not federated or one["bbox"][2] * one["bbox"][3] > 0]
        total = sum(map(len, objects.values()))
        if not total:
            found[category["name"]] = None
            continue
        figures = []
        for overlap in OVERLAPS:
            taken, hits = set(), []
            for one in pool:
                free = [
                    (iou(one["bbox"], box), place)
                    for place, box in enumerate(objects[one["image_id"]])
                    if (one["image_id"], place) not in taken
                ]
                best = max(free, default=(0.0, -1))
                hit = best[0] >= overlap - 1e-12
                if hit:
                    taken.add((one["image_id"], best[1]))
                if hit or one["image_id"] not in loose:
                    hits.append(hit)
            figures.append(average_precision(hits, total))
        found[category["name"]] = sum(figures) / len(figures)
    return found


@pytest.mark.parametrize("backend", ["official", "fast"])
@pytest.mark.parametrize("kind", [CocoEvaluator, LvisEvaluator, VocEvaluator])
@pytest.mark.parametrize("seed", [0, 1])
def test_ap_fixed_equals_the_simple_computation(random_set, feed, monkeypatch, kind, backend, seed):
    """A class has 40 detections in total; the limit of 7 per image must have no effect."""
    monkeypatch.setattr(evaluator, "FIXED_DETECTIONS", 40)
    data, results = random_set(seed, crowds=False, federated=True)
    for one in results:  # equal scores have no defined order
        one["score"] += np.random.default_rng(seed).permutation(len(results))[results.index(one)] / 2**20
    measured = kind(data, backend=backend, image_cap=7)
    feed(measured, data, results)
    metrics = measured.evaluate()
    expected = obvious(data, results, 40, federated=kind is LvisEvaluator)
    assert measured.per_class_fixed == pytest.approx(expected, abs=1e-9)
    assert metrics["AP_fixed"] == pytest.approx(mean_defined(list(expected.values())), abs=1e-9)
    by_group = {category["name"]: category["frequency"] for category in data["categories"]}
    for group in "rcf":
        own = mean_defined([expected[name] for name in by_group if by_group[name] == group])
        assert metrics[f"AP_fixed_{group}"] == pytest.approx(own, abs=1e-9)


@pytest.mark.parametrize("kind", [CocoEvaluator, LvisEvaluator, VocEvaluator])
def test_the_other_figures_equal_those_of_limited_detections(random_set, feed, kind):
    data, results = random_set(3, federated=True)
    kept = {}
    for one in sorted(results, key=lambda one: -one["score"]):
        kept.setdefault(one["image_id"], []).append(one)
    plain, measured = kind(data), kind(data, image_cap=7)
    feed(plain, data, [one for one in results if any(one is other for other in kept[one["image_id"]][:7])])
    feed(measured, data, results)
    metrics = measured.evaluate()
    assert "AP_fixed" not in plain.evaluate()
    assert {name: value for name, value in metrics.items() if "fixed" not in name} == plain.evaluate()
    assert measured.confusion() == plain.confusion() and measured.recognition() == plain.recognition()
    assert metrics["AP_fixed"] != metrics["AP"]


def test_ap_fixed_of_a_class_does_not_depend_on_other_classes(one_class, detections):
    """With two classes and one detection per image, AP of a class depends on the other's scores, but AP_fixed does not."""
    one_class["categories"].append({"id": 6, "name": "other"})
    one_class["annotations"][1]["category_id"] = 6
    found = {}
    for factor in (0.5, 1.0):
        measured = CocoEvaluator(one_class, image_cap=1)
        measured.process([7], [detections([[0, 0, 40, 40], [50, 50, 90, 90]], [0.6, 0.8 * factor], [0, 1])])
        metrics = measured.evaluate()
        found[factor] = metrics["per_class"], measured.per_class_fixed
    assert found[0.5][0] == {"thing": pytest.approx(1), "other": 0}
    assert found[1.0][0] == {"thing": 0, "other": pytest.approx(1)}
    assert found[0.5][1] == found[1.0][1] == {"thing": pytest.approx(1), "other": pytest.approx(1)}


def test_an_image_cap_below_one_is_rejected(one_class):
    with pytest.raises(ValueError, match="image_cap must be at least 1"):
        CocoEvaluator(one_class, image_cap=0)
