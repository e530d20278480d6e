"""COCO and LVIS evaluation compared with pycocotools and lvis, on generated detections of real size.

Each side runs in a fresh process, so that its memory is measured separately. The measurement starts with the detections of a whole
split as arrays and ends with the metrics. It includes the creation of the dictionaries that the official packages need.
"""

from __future__ import annotations

import copy
import gc
import logging
from collections.abc import Callable

import numpy as np
import torch

from afl.benchmarks.fresh_process import in_a_process
from afl.benchmarks.harness import Row
from afl.evaluation import CocoEvaluator, Evaluator, LvisEvaluator
from afl.evaluation.official import patched_lvis
from detectors.contract import Detections

FIGURES = ("AP", "AP50", "AP75")
TOLERANCE = 1e-9
BUDGETS = {"COCO": 60.0, "LVIS": 50.0}  # how many times as fast as the official package


def measure(quick: bool) -> list[Row]:
    """COCO: 5,000 images x 100 detections, 80 classes; LVIS: 6,000 x 300, 1,203 classes."""
    coco = invented(100 if quick else 5_000, 20 if quick else 100, 80, federated=False)
    rows = _compare("COCO evaluation", coco, _our_coco, _their_coco, "pycocotools")
    del coco
    gc.collect()
    lvis = invented(60 if quick else 6_000, 30 if quick else 300, 1203, federated=True)
    rows += _compare("LVIS evaluation", lvis, _our_lvis, _their_lvis, "lvis")
    rows.append(
        Row.share(
            "memory of LVIS evaluation / theirs",
            rows[-2].ours_memory,
            max(rows[-2].theirs_memory, 1),
            unit="B",
            budget=0.1,
        )  # fmt: skip
    )
    return rows


def _compare(what: str, data: tuple, ours: Callable, theirs: Callable, package: str) -> list[Row]:
    mine, other = in_a_process(ours, data), in_a_process(theirs, data)
    apart = max(abs(mine[0][name] - other[0][name]) for name in FIGURES)
    truth, found = data
    size = f"{len(found):,} images x {len(found[0].scores)} detections"
    return [
        Row.speed_up(
            f"{what}, {size}",
            mine[1],
            other[1],
            budget=BUDGETS[what.split()[0]],
            ours_memory=mine[2],
            theirs_memory=other[2],
            note=f"{package}; memory: growth of the process",
        ),  # fmt: skip
        Row(
            f"{what}, largest difference of AP, AP50, AP75",
            ours=mine[0]["AP"],
            theirs=other[0]["AP"],
            unit="",
            ratio=apart,
            budget=TOLERANCE,
            at_most=True,
            note=f"{package}; the columns are AP",
        ),
    ]


def _our_coco(truth: dict, found: list[Detections]) -> dict[str, float]:
    return _ours(CocoEvaluator(truth), truth, found)


def _our_lvis(truth: dict, found: list[Detections]) -> dict[str, float]:
    return _ours(LvisEvaluator(truth), truth, found)


def _ours(evaluator: Evaluator, truth: dict, found: list[Detections]) -> dict[str, float]:
    evaluator.process([image["id"] for image in truth["images"]], found)
    return evaluator.evaluate()


def _their_coco(truth: dict, found: list[Detections]) -> dict[str, float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    dataset = COCO()
    dataset.dataset = truth
    dataset.createIndex()
    evaluation = COCOeval(dataset, dataset.loadRes(_as_results(truth, found)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return dict(zip(FIGURES, evaluation.stats, strict=False))


def _their_lvis(truth: dict, found: list[Detections]) -> dict[str, float]:
    with patched_lvis() as lvis:
        dataset = lvis.LVIS.__new__(lvis.LVIS)
        dataset.logger = logging.getLogger("lvis")
        dataset.logger.setLevel(logging.ERROR)
        dataset.dataset = truth
        dataset._create_index()
        evaluation = lvis.LVISEval(dataset, lvis.LVISResults(dataset, _as_results(truth, found)), "bbox")
        evaluation.run()
        return evaluation.get_results()


def _as_results(truth: dict, found: list[Detections]) -> list[dict]:
    results = []
    for image, one in zip(truth["images"], found, strict=True):
        boxes = copy.copy(one.boxes.numpy())
        boxes[:, 2:] -= boxes[:, :2]
        for box, score, label in zip(boxes.tolist(), one.scores.tolist(), one.labels.tolist(), strict=True):
            results.append({"image_id": image["id"], "category_id": label + 1, "bbox": box, "score": score})
    return results


def invented(images: int, detections: int, classes: int, federated: bool) -> tuple[dict, list[Detections]]:
    """A ground truth with about seven objects per image and a long tail of classes, and detections of which a tenth are slightly
    shifted objects. Coordinates are multiples of 1/4, so that no reader rounds them."""
    rng = np.random.default_rng(0)
    chance = 1.0 / np.arange(1, classes + 1)
    chance /= chance.sum()
    groups = ["f" if c < classes // 3 else "c" if c < 2 * classes // 3 else "r" for c in range(classes)]
    categories = [{"id": c + 1, "name": f"class {c + 1}", "frequency": g} for c, g in enumerate(groups)]
    listed, annotations, found = [], [], []
    for number in range(images):
        count = int(rng.integers(4, 11))
        labels = rng.choice(classes, count, p=chance)
        boxes = _boxes(rng, count)
        image = {"id": number + 1, "width": 640, "height": 480}
        if federated:
            absent = np.setdiff1d(rng.choice(classes, 8, p=chance), labels)
            image |= {"neg_category_ids": (absent + 1).tolist(), "not_exhaustive_category_ids": []}
        listed.append(image)
        for box, label in zip(boxes, labels, strict=True):
            x1, y1, x2, y2 = box.tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number + 1,
                    "category_id": int(label) + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
        near = rng.integers(count, size=max(detections // 10, 1))
        moved = np.round((boxes[near] + rng.normal(0, 4, (len(near), 4))) * 4) / 4
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        all_boxes = np.concatenate([moved, _boxes(rng, detections - len(near))])
        all_labels = np.concatenate([labels[near], rng.choice(classes, detections - len(near), p=chance)])
        scores = np.sort(rng.random(detections).astype(np.float32))[::-1].copy()
        found.append(
            Detections(
                torch.from_numpy(all_boxes.astype(np.float32)),
                torch.from_numpy(scores),
                torch.from_numpy(all_labels.astype(np.int64)),
            )
        )
    return {"images": listed, "annotations": annotations, "categories": categories, "info": {}}, found


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Boxes (count, 4) xyxy inside 640 x 480 with sides of 8 to 208."""
    size = np.round(rng.uniform(8, 208, (count, 2)) * 4) / 4
    corner = np.round(rng.random((count, 2)) * (np.array([640, 480]) - size) * 4) / 4
    return np.concatenate([corner, corner + size], axis=1)
