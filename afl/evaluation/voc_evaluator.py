"""PASCAL VOC's mean average precision, and COCO's metrics of the same detections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pycocotools.mask import iou as pairwise_iou

from afl.evaluation.coco_evaluator import CocoEvaluator
from afl.evaluation.detections import DetectionArrays
from afl.evaluation.groups import mean_defined

RULES = ("area", "11point")


class VocEvaluator(CocoEvaluator):
    """VOC's mAP by the rules of its development kit (Everingham et al. 2010; VOCdevkit, VOCevaldet.m).

    The detections of a class are processed in order of descending score. Each is compared with the object that it overlaps
    most. It is a true positive if the overlap is at least ``iou`` and the object has not been matched before. It is ignored if
    the overlap is at least ``iou`` and the object is difficult. AP is the area under the precision envelope (2010 and later), or
    the mean of the envelope at recalls 0, 0.1, ... 1 (2007). Classes that have only difficult objects, or none, are left out of
    the mean.

    The kit's boxes are inclusive pixel numbers, so it adds 1 to compute widths. The continuous boxes of this project
    (x1 - 1, y1 - 1, x2, y2) have the same sides and overlaps without this correction.

    In addition to ``mAP50``, the result has COCO's metrics (AP over 0.5:0.95 and the others, see ``CocoEvaluator``), which treat
    difficult objects like crowd regions.
    """

    def __init__(
        self,
        ground_truth: Mapping,
        metric: str = "area",
        iou: float = 0.5,
        groups: Sequence[str] | None = None,
        backend: str = "fast",
        image_cap: int | None = None,
    ) -> None:
        """
        Args:
            ground_truth: COCO-format dictionary; annotations may have ``difficult``, ``ignore`` or ``iscrowd``.
            metric: ``area`` or ``11point``.
            iou: smallest overlap of a true positive, in (0, 1]; the name of the metric is mAP followed by 100 times this number.
            groups: (C,) "r", "c" or "f" of each class.
            backend: package that computes COCO's metrics: pycocotools (``official``) or hotcoco (``fast``).
            image_cap: see ``Evaluator``; AP_fixed is COCO's AP.
        """
        super().__init__(ground_truth, groups=groups, backend=backend, image_cap=image_cap)
        if metric not in RULES:
            raise ValueError(f"the VOC metric is {' or '.join(RULES)}, not {metric!r}")
        if not 0 < iou <= 1:
            raise ValueError(f"the VOC overlap must be in (0, 1], it is {iou}")
        self.metric = metric
        self.iou = iou

    def _measure(self, found: DetectionArrays) -> dict:
        average = [self._average_precision(label, found) for label in range(self.truth.num_classes)]
        return super()._measure(found) | {f"mAP{100 * self.iou:.0f}": mean_defined(average)}

    def _average_precision(self, label: int, found: DetectionArrays) -> float | None:
        """AP of one class; None if all its objects are ignored, or if it has none."""
        objects = np.flatnonzero(self.truth.label == label)
        total = np.count_nonzero(~self.truth.ignored[objects])
        if total == 0:
            return None
        objects = objects[np.argsort(self.truth.image[objects], kind="stable")]
        found = found.take(np.flatnonzero(found.label == label))

        # For each detection, the row of the object that it overlaps most, or -1 if that overlap is below the threshold.
        best = np.full(len(found), -1)
        images = np.intersect1d(self.truth.image[objects], found.image)
        for here, there in zip(
            _spans(found.image, images), _spans(self.truth.image[objects], images), strict=True
        ):
            candidates = objects[there]
            iou = pairwise_iou(
                found.boxes[here].astype(np.float64),
                self.truth.boxes[candidates],
                np.zeros(len(candidates), np.uint8),
            )
            best[here] = np.where(iou.max(1) >= self.iou, candidates[iou.argmax(1)], -1)

        best = best[np.argsort(-found.scores, kind="stable")]
        ignored = (best >= 0) & self.truth.ignored[best]
        best = best[~ignored]
        true = np.zeros(len(best), bool)
        taken, first = np.unique(best, return_index=True)
        true[first[taken >= 0]] = True
        true_sum = np.cumsum(true)
        return average_precision(
            recall=true_sum / total, precision=true_sum / np.arange(1, len(true) + 1), metric=self.metric
        )


def _spans(image: np.ndarray, images: np.ndarray) -> list[slice]:
    """The slice of the sorted array ``image`` that holds each of ``images``."""
    starts = np.searchsorted(image, images, side="left")
    ends = np.searchsorted(image, images, side="right")
    return [slice(start, end) for start, end in zip(starts, ends, strict=True)]


def average_precision(recall: np.ndarray, precision: np.ndarray, metric: str) -> float:
    """AP from recall (n,), non-decreasing, and precision (n,) after each detection, best score first.

    ``11point`` (VOC 2007) is the mean over recalls 0, 0.1, ... 1 of the largest precision at that recall or a higher one.
    ``area`` (VOC 2010 and later) is the exact area under this envelope.
    """
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    if metric == "11point":
        return float(envelope[np.searchsorted(recall, np.arange(11) / 10, side="left")].mean())
    steps = np.diff(recall, prepend=0.0)
    return float((steps * envelope[:-1]).sum())
