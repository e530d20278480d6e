"""MS COCO's detection metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from afl.evaluation.curves import Curves
from afl.evaluation.detections import DetectionArrays
from afl.evaluation.evaluator import Evaluator, check_backend


class CocoEvaluator(Evaluator):
    """AP over overlaps 0.5:0.95, by object size and by class (Lin et al. 2014; cocodataset.org, detection evaluation).

    Crowd regions are ignored by COCO's rule: any number of detections may match one, and the overlap is relative to the
    detection's area.

    ``official`` runs pycocotools, the reference for published numbers; ``fast`` runs hotcoco. Tests check that both agree.
    """

    def __init__(
        self,
        ground_truth: Mapping,
        max_detections: int = 100,
        backend: str = "fast",
        groups: Sequence[str] | None = None,
        image_cap: int | None = None,
    ) -> None:
        """
        Args:
            ground_truth: COCO-format dictionary.
            max_detections: largest number of detections of one class in one image, best first, like COCO's maxDets.
            backend: ``official`` or ``fast``.
            groups: (C,) "r", "c" or "f" of each class for AP_r, AP_c and AP_f.
            image_cap: see ``Evaluator``.
        """
        super().__init__(ground_truth, groups, image_cap)
        if max_detections < 1:
            raise ValueError(f"max_detections must be at least 1, it is {max_detections}")
        self.max_detections = max_detections
        self.backend = check_backend(backend)

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
