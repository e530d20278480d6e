"""MS COCO's detection metrics."""

from __future__ import annotations

from afl.evaluation.curves import Curves
from afl.evaluation.detections import DetectionArrays
from afl.evaluation.evaluator import Evaluator


class CocoEvaluator(Evaluator):
    """AP over overlaps 0.5:0.95, by object size and by class (Lin et al. 2014; cocodataset.org, detection evaluation).

    Crowd regions are ignored by COCO's rule: any number of detections may match one, and the overlap is relative to the
    detection's area. ``max_detections`` is the largest number of detections of one class in one image, best first, like COCO's
    maxDets.

    ``official`` runs pycocotools, the reference for published numbers; ``fast`` runs hotcoco. Tests check that both agree.
    """

    def _measure(self, found: DetectionArrays) -> dict:
        return self._summarized(self._curves(found, self.max_detections))

    def _uncapped(self, found: DetectionArrays) -> Curves:
        return self._curves(found, found.largest_count())

    def _curves(self, found: DetectionArrays, max_detections: int) -> Curves:
        if self.backend == "official":
            from afl.evaluation.official import coco_curves
        else:
            from afl.evaluation.fast import coco_curves
        return coco_curves(self.truth, found, max_detections)
