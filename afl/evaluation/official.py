"""COCO's and LVIS's curves, computed by the official packages pycocotools and ``lvis``, the reference for published numbers."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np

from afl.evaluation.curves import Curves
from afl.evaluation.detections import DetectionArrays
from afl.evaluation.ground_truth import GroundTruth, lvis_images


def coco_curves(truth: GroundTruth, found: DetectionArrays, max_detections: int) -> Curves:
    """Curves by MS COCO's rules, with at most ``max_detections`` of one class in one image."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    # pycocotools prints its progress to standard output, which belongs to the caller's progress bar.
    with contextlib.redirect_stdout(io.StringIO()), _no_garbage_collection():
        images = [{"id": number} for number in truth.image_ids]
        objects, results = COCO(), COCO()
        objects.dataset = _dataset(truth, images, _annotation_dicts(truth))
        results.dataset = _dataset(truth, images, _detection_dicts(truth, found))
        objects.createIndex()
        results.createIndex()  # instead of loadRes, which rejects empty results
        evaluation = COCOeval(objects, results, iouType="bbox")
        evaluation.params.maxDets = [max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
    order = _rising_ids(truth)
    return Curves(
        precision=np.asarray(evaluation.eval["precision"])[..., 0][:, :, order],
        recall=np.asarray(evaluation.eval["recall"])[..., 0][:, order],
        overlaps=np.asarray(evaluation.params.iouThrs),
    )


def lvis_curves(
    truth: GroundTruth, found: DetectionArrays, negative: np.ndarray, not_exhaustive: np.ndarray
) -> Curves:
    """Curves by LVIS's federated rules.

    Args:
        found: already limited to the best detections of each image.
        negative: (n, 2) image positions and classes that are known to be absent.
        not_exhaustive: (n, 2) image positions and classes of which only some objects are annotated.
    """
    with patched_lvis() as lvis, _no_garbage_collection():
        images = lvis_images(truth.image_ids, truth.category_ids, negative, not_exhaustive)
        objects, results = lvis.LVIS.__new__(lvis.LVIS), lvis.LVISResults.__new__(lvis.LVISResults)
        for api, annotations in (
            (objects, _annotation_dicts(truth)),
            (results, _detection_dicts(truth, found)),
        ):
            api.logger = logging.getLogger("lvis")
            api.dataset = _dataset(truth, images, annotations)
            api._create_index()
        evaluation = lvis.LVISEval(objects, results, "bbox")
        evaluation.params.max_dets = max(1, len(found))  # ``found`` is already limited
        evaluation.evaluate()
        evaluation.accumulate()
    order = _rising_ids(truth)
    return Curves(
        precision=np.asarray(evaluation.eval["precision"])[:, :, order],
        recall=np.asarray(evaluation.eval["recall"])[:, order],
        overlaps=np.asarray(evaluation.params.iou_thrs),
    )


def _rising_ids(truth: GroundTruth) -> np.ndarray:
    """(C,) rank of each class by category id; both packages sort classes by id."""
    return np.argsort(np.argsort(truth.category_ids))


def _dataset(truth: GroundTruth, images: list[dict], annotations: list[dict]) -> dict:
    categories = [
        {"id": number, "name": name, "frequency": "f"}
        for number, name in zip(truth.category_ids, truth.names, strict=True)
    ]
    return {"images": images, "categories": categories, "annotations": annotations}


@contextlib.contextmanager
def patched_lvis() -> Iterator[SimpleNamespace]:
    """The package ``lvis`` 0.5.3, patched for current numpy, which no longer has ``np.float``.

    Importing ``lvis`` configures the root logger; the logger is restored.
    """
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    import lvis.eval

    root.handlers[:] = handlers
    root.setLevel(level)
    numpy = lvis.eval.np
    lvis.eval.np = _NumpyOf2020()
    try:
        yield SimpleNamespace(LVIS=lvis.LVIS, LVISResults=lvis.LVISResults, LVISEval=lvis.LVISEval)
    finally:
        lvis.eval.np = numpy


class _NumpyOf2020:
    """numpy with ``np.float``, an alias of ``float`` that ``lvis`` 0.5.3 uses."""

    float = float

    def __getattr__(self, name: str) -> object:
        return getattr(np, name)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Pause garbage collection, which is slow while hundreds of thousands of dictionaries are created."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _annotation_dicts(truth: GroundTruth) -> list[dict]:
    # Ids start at 1, because both packages interpret an id of 0 as "not matched".
    return [
        {
            "id": row + 1,
            "image_id": truth.image_ids[image],
            "category_id": truth.category_ids[label],
            "bbox": box,
            "area": area,
            "iscrowd": int(ignored),  # read by pycocotools
            "ignore": int(ignored),  # read by lvis
        }
        for row, (image, label, box, area, ignored) in enumerate(
            zip(
                truth.image.tolist(),
                truth.label.tolist(),
                truth.boxes.tolist(),
                truth.area.tolist(),
                truth.ignored.tolist(),
                strict=True,
            )
        )
    ]


def _detection_dicts(truth: GroundTruth, found: DetectionArrays) -> list[dict]:
    return [
        {
            "id": row + 1,
            "image_id": truth.image_ids[image],
            "category_id": truth.category_ids[label],
            "bbox": box,
            "area": box[2] * box[3],
            "score": score,
            "iscrowd": 0,
        }
        for row, (image, label, box, score) in enumerate(
            zip(
                found.image.tolist(),
                found.label.tolist(),
                found.boxes.tolist(),
                found.scores.tolist(),
                strict=True,
            )
        )
    ]
