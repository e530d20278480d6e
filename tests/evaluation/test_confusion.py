"""Confusion compared with a slow matcher and manual cases; precision by group compared with the official package."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afl.evaluation import BACKGROUND, CocoEvaluator, LvisEvaluator, confusion_by_group
from afl.evaluation.official import coco_curves

NAMES = ["ant", "bee", "cat"]
GROUPS = ["r", "c", "f"]


class Found:
    def __init__(self, boxes, scores, labels):
        self.boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
        self.scores, self.labels = np.asarray(scores, np.float32), np.asarray(labels, np.int64)


def truth(objects, images=2):
    """A COCO dictionary of (image, label, box xyxy, crowd)."""
    return {
        "images": [
            {"id": i, "neg_category_ids": [2], "not_exhaustive_category_ids": [3]} for i in range(images)
        ],
        "categories": [{"id": n + 1, "name": name, "frequency": GROUPS[n]} for n, name in enumerate(NAMES)],
        "annotations": [
            {
                "id": n + 1,
                "image_id": image,
                "category_id": label + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": int(crowd),
            }
            for n, (image, label, (x1, y1, x2, y2), crowd) in enumerate(objects)
        ],
    }


def iou(a, b, crowd=False):
    """Of two boxes; for a crowd ``b`` the part of ``a`` inside it."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = width * height
    if crowd:
        return both / ((a[2] - a[0]) * (a[3] - a[1]))
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def slowly(objects, found):
    """Match one detection after another with every object."""
    counts = Counter()
    for image, own in enumerate(found):
        here = [(label, box, crowd) for at, label, box, crowd in objects if at == image]
        taken = set()
        for n in sorted(range(len(own.scores)), key=lambda n: (-own.scores[n], n)):
            if own.scores[n] < 0.3:
                continue
            overlaps = [(iou(own.boxes[n].tolist(), box, crowd), k) for k, (_, box, crowd) in enumerate(here)]
            free = [
                pair for pair in overlaps if pair[1] not in taken and not here[pair[1]][2] and pair[0] >= 0.5
            ]
            if free:
                _, k = max(free, key=lambda pair: (pair[0], -pair[1]))
                taken.add(k)
                counts[here[k][0], int(own.labels[n])] += 1
            elif not any(value >= 0.5 and here[k][2] for value, k in overlaps):
                counts[BACKGROUND, int(own.labels[n])] += 1
        for k, (label, _, crowd) in enumerate(here):
            if k not in taken and not crowd:
                counts[label, BACKGROUND] += 1
    return dict(sorted(counts.items()))


corner, side, label = st.integers(0, 6), st.integers(4, 8), st.integers(0, 2)
boxes = st.tuples(corner, corner, side, side).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
a_truth = st.lists(st.tuples(st.integers(0, 1), label, boxes, st.booleans()), max_size=8)
some_found = st.lists(st.tuples(boxes, st.sampled_from([0.25, 0.3, 0.5, 0.9]), label), max_size=8)


@settings(max_examples=150, deadline=None)
@given(a_truth, st.tuples(some_found, some_found))
def test_counts_equal_those_of_the_slow_matcher(objects, rows):
    found = [Found([r[0] for r in own], [r[1] for r in own], [r[2] for r in own]) for own in rows]
    evaluator = CocoEvaluator(truth(objects), groups=GROUPS)
    evaluator.process([0, 1], found)
    assert evaluator.confusion() == slowly(objects, found)


@settings(max_examples=150, deadline=None)
@given(a_truth, st.tuples(some_found, some_found))
def test_recognition_equals_a_search_of_every_object(objects, rows):
    found = [Found([r[0] for r in own], [r[1] for r in own], [r[2] for r in own]) for own in rows]
    evaluator = CocoEvaluator(truth(objects), groups=GROUPS)
    evaluator.process([0, 1], found)
    expected = {group: [0, 0, 0] for group in GROUPS}
    for image, label, box, crowd in objects:
        own = found[image]
        close = [n for n in range(len(own.scores)) if iou(own.boxes[n].tolist(), box) >= 0.5]
        if not crowd:
            counts = expected[GROUPS[label]]
            counts[0] += 1
            counts[1] += bool(close)
            counts[2] += bool(close) and own.labels[max(close, key=lambda n: own.scores[n])] == label
    assert evaluator.recognition() == {group: tuple(counts) for group, counts in expected.items()}


def test_groups_separate_the_right_class_from_others_of_the_same_group():
    counts = {(0, 0): 3, (0, 1): 2, (1, 1): 5, (1, 2): 4, (2, BACKGROUND): 7, (BACKGROUND, 2): 9}
    table = confusion_by_group(counts, ["r", "r", "f"])
    assert table["r"] == {"its class": 8, "r": 2, "c": 0, "f": 4, "nothing": 0}
    assert table["f"] == {"its class": 0, "r": 0, "c": 0, "f": 0, "nothing": 7}
    assert table["background"]["f"] == 9 and sum(sum(row.values()) for row in table.values()) == 30


def test_lvis_only_counts_wrong_detections_of_checked_classes():
    # In each image class 1 (bee) is checked, class 2 (cat) is not exhaustive, and class 0 (ant) is only in image 0; there is a cat
    # in image 1.
    evaluator = LvisEvaluator(truth([(0, 0, (0, 0, 8, 8), False), (1, 2, (0, 0, 8, 8), False)]))
    away = [(20, 20, 28, 28)] * 3
    evaluator.process([0, 1], [Found(away, [0.9] * 3, [0, 1, 2])] * 2)
    missed = {(0, BACKGROUND): 1, (2, BACKGROUND): 1}
    assert evaluator.confusion() == {(BACKGROUND, 0): 1, (BACKGROUND, 1): 2} | missed


@pytest.mark.parametrize("kind", [CocoEvaluator, LvisEvaluator])
def test_precision_by_group_is_the_official_one_averaged(kind):
    rng = np.random.default_rng(0)
    objects, found = [], []
    for image in range(6):
        corners = rng.uniform(0, 50, (4, 2))
        own = np.concatenate([corners, corners + rng.uniform(10, 30, (4, 2))], 1)
        labels = rng.integers(0, 2, 4)  # no cat in any image
        objects += [(image, int(n), tuple(box), False) for n, box in zip(labels, own, strict=True)]
        found.append(Found(own + rng.normal(0, 2, own.shape), rng.uniform(0, 1, 4), labels))
    data = truth(objects, images=6)
    for image in data["images"]:
        image["not_exhaustive_category_ids"] = []
    evaluator = kind(data, groups=GROUPS)
    assert evaluator.precision == {}
    evaluator.process(range(6), found)
    metrics = evaluator.evaluate()
    assert set(evaluator.precision) == {"all", "r", "c"}
    assert np.mean(evaluator.precision["all"]) == pytest.approx(metrics["AP50"])
    if kind is CocoEvaluator:
        precision = coco_curves(evaluator.truth, evaluator.detections(), 100).precision
        assert evaluator.precision["r"] == pytest.approx(precision[0, :, 0, 0].tolist())
        assert evaluator.precision["c"] == pytest.approx(precision[0, :, 1, 0].tolist())
