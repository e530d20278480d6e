"""COCO's and LVIS's curves, computed by hotcoco, which is written in Rust and reads arrays.

Tests check that the results agree with those of pycocotools and ``lvis``, which ``official.py`` runs.
"""

from __future__ import annotations

import contextlib
import io
import os

import hotcoco
import numpy as np

from afl.evaluation.curves import Curves
from afl.evaluation.detections import DetectionArrays
from afl.evaluation.ground_truth import GroundTruth, lvis_images

_THREADS: list[int] = []  # the process in which hotcoco has started its threads


def coco_curves(truth: GroundTruth, found: DetectionArrays, max_detections: int) -> Curves:
    """Curves by MS COCO's rules, with at most ``max_detections`` of one class in one image."""
    images = [{"id": i + 1} for i in range(len(truth.image_ids))]
    return _run(truth, found, images, max_detections, lvis=False)


def lvis_curves(
    truth: GroundTruth, found: DetectionArrays, negative: np.ndarray, not_exhaustive: np.ndarray
) -> Curves:
    """Curves by LVIS's federated rules.

    Args:
        truth: without ignored objects, which hotcoco does not support with LVIS's rules.
        found: already limited to the best detections of each image.
        negative: (n, 2) image positions and classes that are known to be absent.
        not_exhaustive: (n, 2) image positions and classes of which only some objects are annotated.
    """
    image_ids, category_ids = (range(1, n + 1) for n in (len(truth.image_ids), truth.num_classes))
    images = lvis_images(image_ids, category_ids, negative, not_exhaustive)
    # The official loaders drop objects and detections whose area is zero.
    truth = truth.take(np.flatnonzero(truth.area > 0))
    found = found.take(np.flatnonzero(found.boxes[:, 2:].astype(np.float64).prod(axis=1) > 0))
    most = int(np.bincount(found.image, minlength=1).max())
    return _run(truth, found, images, max(1, most), lvis=True)


def _run(
    truth: GroundTruth, found: DetectionArrays, images: list[dict], max_detections: int, *, lvis: bool
) -> Curves:
    """Evaluate with positions plus 1 as ids, so that the order of ``truth`` breaks ties.

    Raises:
        RuntimeError: this process was forked after an evaluation. A forked process lacks hotcoco's threads and would hang.
    """
    if _THREADS and _THREADS[0] != os.getpid():
        raise RuntimeError(
            "this process was forked from one that has evaluated with hotcoco, and a fork lacks hotcoco's threads; start it with "
            "multiprocessing's spawn, or set trainer.evaluator=official"
        )
    _THREADS[:] = [os.getpid()]
    categories = [{"id": label + 1, "name": name, "frequency": "f"} for label, name in enumerate(truth.names)]
    objects = hotcoco.COCO.from_arrays(
        images,
        categories,
        truth.image + 1,
        truth.label + 1,
        truth.boxes,
        area=truth.area,
        iscrowd=truth.ignored.astype(np.uint8),
    )
    boxes, scores = found.boxes.astype(np.float64), found.scores.astype(np.float64)
    results = np.column_stack([found.image + 1, boxes, scores, found.label + 1])
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = hotcoco.COCOeval(objects, objects.load_res(results), "bbox", lvis_style=lvis)
        evaluation.params.max_dets = [max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
    figures = evaluation.eval
    return Curves(
        precision=np.asarray(figures["precision"])[..., 0],
        recall=np.asarray(figures["recall"])[..., 0],
        overlaps=np.asarray(evaluation.params.iou_thrs),
    )
