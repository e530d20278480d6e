"""MS COCO's detection metrics, by the official package or by a fast one with the same numbers."""

from __future__ import annotations

import contextlib
import gc
import io
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from afl.evaluation.detections import DetectionArrays
from afl.evaluation.evaluator import Evaluator
from afl.evaluation.ground_truth import GroundTruth

BACKENDS = ("official", "fast")


class CocoEvaluator(Evaluator):
    """AP over overlaps 0.5:0.95, by object size and by class (Lin et al. 2014; cocodataset.org, detection
    evaluation). Crowd regions are ignored by COCO's rule: any number of detections may lie in one, overlap
    being measured against the detection's own area.

    ``official`` runs pycocotools, which decides published numbers; ``fast`` runs faster-coco-eval, as an
    ordinary import that leaves pycocotools as it is. Tests hold the two together.
    """

    def __init__(
        self,
        ground_truth: Mapping,
        max_detections: int = 100,
        backend: str = "official",
        groups: Sequence[str] | None = None,
    ) -> None:
        """
        Args:
            ground_truth: COCO-format dictionary.
            max_detections: largest number of detections of one class in one image, best first (COCO's maxDets
                counts so).
            backend: ``official`` or ``fast``.
            groups: (C,) "r", "c" or "f" of each class for AP_r, AP_c and AP_f.
        """
        super().__init__(ground_truth, groups)
        if backend not in BACKENDS:
            raise ValueError(f"the COCO evaluator has backends {' and '.join(BACKENDS)}, not {backend!r}")
        if max_detections < 1:
            raise ValueError(f"max_detections must be at least 1, it is {max_detections}")
        self.max_detections = max_detections
        self.backend = backend

    def _measure(self, found: DetectionArrays) -> dict:
        precision, recall, thresholds = coco_curves(self.truth, found, self.max_detections, self.backend)
        return self._summarized(precision, recall, thresholds)


def coco_curves(
    truth: GroundTruth, found: DetectionArrays, max_detections: int, backend: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Interpolated precision (T, 101, C, 4), recall (T, C, 4) and the (T,) overlaps, -1 where there is
    nothing to find; classes in the order of ``truth``."""
    if backend == "official":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    else:
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval

    # both packages report their progress on standard output, which belongs to the caller's progress bar
    with contextlib.redirect_stdout(io.StringIO()), _no_garbage_collection():
        evaluation = COCOeval(
            _indexed(COCO, truth, _annotation_dicts(truth)),
            _indexed(COCO, truth, _detection_dicts(truth, found)),
            iouType="bbox",
        )
        evaluation.params.maxDets = [max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
    # the packages number classes by rising category id
    order = np.argsort(np.argsort(truth.category_ids))
    precision = np.asarray(evaluation.eval["precision"])[..., 0][:, :, order]
    recall = np.asarray(evaluation.eval["recall"])[..., 0][:, order]
    return precision, recall, np.asarray(evaluation.params.iouThrs)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Python looks for cycles again and again while dictionaries are made by the hundred thousand, and finds none."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _indexed(api: type, truth: GroundTruth, annotations: list[dict]) -> object:
    """A package's ``COCO`` object, made without a file (and without ``loadRes``, which refuses empty
    results)."""
    coco = api()
    coco.dataset = {
        "images": [{"id": number} for number in truth.image_ids],
        "categories": [
            {"id": number, "name": name} for number, name in zip(truth.category_ids, truth.names, strict=True)
        ],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _annotation_dicts(truth: GroundTruth) -> list[dict]:
    # numbered anew from 1: both packages take an id of 0 for "not matched"
    return [
        {
            "id": row + 1,
            "image_id": truth.image_ids[image],
            "category_id": truth.category_ids[label],
            "bbox": box,
            "area": area,
            "iscrowd": int(ignored),
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
