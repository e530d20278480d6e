"""VOC figures compared with a slow, simple implementation, with closed-form cases, and with pycocotools for 0.5:0.95."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afl.evaluation.coco_evaluator import CocoEvaluator
from afl.evaluation.voc_evaluator import VocEvaluator, average_precision


def slow_iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union


def slow_ap(objects, found, threshold, metric):
    """The development kit's loop: detection after detection, object after object.

    objects: {image: [(box, difficult)]}; found: [(score, image, box)] in the order of equal scores.
    """
    total = sum(not difficult for rows in objects.values() for _, difficult in rows)
    if total == 0:
        return None
    taken, true, false, points = set(), 0, 0, []
    for _, image, box in sorted(found, key=lambda row: -row[0]):
        best, best_overlap = None, -1.0
        for k, (other, _) in enumerate(objects.get(image, [])):
            overlap = slow_iou(box, other)
            if overlap > best_overlap:
                best, best_overlap = k, overlap
        if best_overlap >= threshold:
            if objects[image][best][1]:
                continue
            if (image, best) not in taken:
                taken.add((image, best))
                true += 1
            else:
                false += 1
        else:
            false += 1
        points.append((true / total, true / (true + false)))
    if metric == "11point":
        return sum(max([p for r, p in points if r >= k / 10], default=0.0) for k in range(11)) / 11
    area, before = 0.0, 0.0
    for recall, _ in points:
        area += (recall - before) * max([p for r, p in points if r >= recall])
        before = recall
    return area


@pytest.mark.parametrize("metric", ["area", "11point"])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_development_kits_loop_on_random_data(random_set, feed, metric, seed):
    ground_truth, results = random_set(seed, crowds=False)
    for annotation in ground_truth["annotations"][::4]:
        annotation["difficult"] = 1
    evaluator = VocEvaluator(ground_truth, metric=metric)
    feed(evaluator, ground_truth, results)
    expected = []
    for category in ground_truth["categories"]:
        objects = {}
        for annotation in ground_truth["annotations"]:
            if annotation["category_id"] == category["id"]:
                box = corners(annotation["bbox"])
                objects.setdefault(annotation["image_id"], []).append((box, "difficult" in annotation))
        found = [
            (result["score"], result["image_id"], corners(result["bbox"]))
            for image_id in sorted(image["id"] for image in ground_truth["images"])
            for result in results
            if result["image_id"] == image_id and result["category_id"] == category["id"]
        ]
        ap = slow_ap(objects, found, 0.5, metric)
        if ap is not None:
            expected.append(ap)
    assert evaluator.evaluate()["mAP50"] == pytest.approx(np.mean(expected), abs=1e-12)


def corners(box):
    x, y, w, h = box
    return (x, y, x + w, y + h)


def test_average_precision_equals_a_manual_computation():
    # true, false, true of two objects: (recall, precision) = (1/2, 1), (1/2, 1/2), (1, 2/3)
    recall, precision = np.array([0.5, 0.5, 1.0]), np.array([1.0, 0.5, 2 / 3])
    assert average_precision(recall, precision, "area") == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert average_precision(recall, precision, "11point") == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)


def test_a_recall_of_exactly_three_tenths_reaches_the_fourth_point():
    recall, precision = np.arange(1, 4) / 10, np.ones(3)
    assert average_precision(recall, precision, "11point") == pytest.approx(4 / 11)


def test_duplicates_are_false_positives_and_difficult_objects_are_ignored(one_class, detections):
    one_class["annotations"][1]["difficult"] = 1
    boxes = [[50, 50, 90, 90], [50, 50, 90, 89], [0, 0, 40, 40], [0, 0, 40, 39]]
    evaluator = VocEvaluator(one_class)
    evaluator.process([7], [detections(boxes, [0.9, 0.8, 0.7, 0.6], [0] * 4)])
    result = evaluator.evaluate()
    assert result["mAP50"] == 1.0  # two ignored, one true, then one false
    assert result["AP50"] == pytest.approx(1.0)


def test_an_overlap_of_exactly_the_threshold_counts(one_class, detections):
    evaluator = VocEvaluator(one_class)
    evaluator.process([7], [detections([[0, 0, 40, 20], [50, 50, 90, 69]], [0.9, 0.8], [0, 0])])
    assert evaluator.evaluate()["mAP50"] == 0.5


def test_a_detection_is_only_compared_with_the_object_that_it_overlaps_most(one_class, detections):
    # VOC: the second box overlaps the first object most, which is already matched; COCO matches it with the other object
    one_class["annotations"][1]["bbox"] = [10, 0, 40, 40]
    found = detections([[0, 0, 40, 40], [4, 0, 44, 40]], [0.9, 0.8], [0, 0])
    evaluator = VocEvaluator(one_class)
    evaluator.process([7], [found])
    result = evaluator.evaluate()
    assert result["mAP50"] == 0.5
    assert result["AP50"] == pytest.approx(1.0)


def test_coco_figures_equal_the_coco_evaluators(random_set, feed):
    ground_truth, results = random_set(2)
    voc, coco = VocEvaluator(ground_truth), CocoEvaluator(ground_truth)
    feed(voc, ground_truth, results)
    feed(coco, ground_truth, results)
    assert {"mAP50": voc.evaluate()["mAP50"], **coco.evaluate()} == voc.evaluate()


@pytest.mark.parametrize("arguments, message", [({"metric": "area11"}, "11point"), ({"iou": 0}, "overlap")])
def test_unknown_rules_are_rejected(one_class, arguments, message):
    with pytest.raises(ValueError, match=message):
        VocEvaluator(one_class, **arguments)


def test_another_overlap_has_another_name_and_no_detections_give_zero(one_class):
    assert VocEvaluator(one_class, iou=0.75).evaluate()["mAP75"] == 0
    one_class["annotations"] = []
    assert VocEvaluator(one_class).evaluate()["mAP50"] is None


@settings(max_examples=200, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(0, 10))
def test_area_equals_the_sum_over_true_positives(hits, missed):
    """Closed form: the mean over objects of the best precision at or after the detection that finds each."""
    true = np.cumsum(hits)
    total = true[-1] + missed
    if total == 0:
        return
    precision = true / np.arange(1, len(hits) + 1)
    expected = sum(precision[k:].max() for k, hit in enumerate(hits) if hit) / total
    assert average_precision(true / total, precision, "area") == pytest.approx(expected)
