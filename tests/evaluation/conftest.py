"""Random data sets, and the transfer of result files to evaluators."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest


def make_detections(boxes, scores, labels):
    return SimpleNamespace(
        boxes=np.asarray(boxes, float).reshape(-1, 4),
        scores=np.asarray(scores),
        labels=np.asarray(labels, int),
    )


def feed_results(evaluator, ground_truth, results):
    """Pass the detections of a COCO results file to an evaluator, every image once."""
    label_of = {category["id"]: label for label, category in enumerate(ground_truth["categories"])}
    by_image = {image["id"]: [] for image in ground_truth["images"]}
    for result in results:
        by_image[result["image_id"]].append(result)
    for image_id, found in by_image.items():
        boxes = np.array([result["bbox"] for result in found], float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        detections = make_detections(
            boxes,
            [result["score"] for result in found],
            [label_of[result["category_id"]] for result in found],
        )
        evaluator.process([image_id], [detections])


def random_data(seed, images=30, classes=6, detections=40, crowds=True, federated=False):
    """A ground truth with unsorted category ids, and results with ties, jittered and free boxes.

    Coordinates are multiples of 1/4 (exact in binary), so that x + w - x is w and every reader sees the same
    box.
    """
    rng = np.random.default_rng(seed)
    ids = rng.permutation(np.arange(3, 3 + 2 * classes, 2)).tolist()
    frequency = ["r", "c", "f"]
    categories = [
        {"id": number, "name": f"class {number}", "frequency": frequency[k % 3]}
        for k, number in enumerate(ids)
    ]
    image_list, annotations, results = [], [], []
    for image_id in rng.permutation(1000)[:images].tolist():
        here = rng.choice(classes, size=rng.integers(0, 4), replace=False)
        boxes, labels = [], []
        for label in here:
            for _ in range(rng.integers(1, 6)):
                x, y = rng.integers(0, 800, 2) / 4
                w, h = rng.integers(8, 600, 2) / 4
                boxes.append([x, y, w, h])
                labels.append(int(label))
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": ids[label],
                        "bbox": [x, y, w, h],
                        "area": w * h * float(rng.choice([1.0, 0.6])),
                        "iscrowd": int(crowds and rng.random() < 0.1),
                    }
                )
        absent = np.setdiff1d(np.arange(classes), here)
        image_list.append({"id": image_id, "width": 400, "height": 400})
        if federated:
            negative = rng.choice(absent, size=min(2, len(absent)), replace=False)
            image_list[-1]["neg_category_ids"] = [ids[label] for label in negative]
            loose = [label for label in [*here, *negative] if rng.random() < 0.2]
            image_list[-1]["not_exhaustive_category_ids"] = [ids[label] for label in loose]
        for _ in range(rng.integers(0, detections + 1)):
            if boxes and rng.random() < 0.7:
                k = rng.integers(len(boxes))
                box = np.round(np.array(boxes[k]) * rng.uniform(0.8, 1.2, 4) * 4) / 4
                label = labels[k] if rng.random() < 0.8 else int(rng.integers(classes))
            else:
                box, label = rng.integers(0, 400, 4) / 4, int(rng.integers(classes))
            # few different scores, exact in float32, so that there are many ties
            score = float(rng.integers(1, 64)) / 64
            results.append(
                {"image_id": image_id, "category_id": ids[label], "bbox": box.tolist(), "score": score}
            )
    data = {"images": image_list, "annotations": annotations, "categories": categories}
    return data, results


@pytest.fixture
def detections():
    return make_detections


@pytest.fixture
def feed():
    return feed_results


@pytest.fixture
def random_set():
    return random_data


@pytest.fixture
def one_class():
    """Two images of one class: one with two objects, one empty."""
    return {
        "images": [{"id": 7, "width": 100, "height": 100}, {"id": 9, "width": 100, "height": 100}],
        "categories": [{"id": 5, "name": "thing"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 5, "bbox": [0, 0, 40, 40], "area": 1600, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 5, "bbox": [50, 50, 40, 40], "area": 1600, "iscrowd": 0},
        ],
    }
