"""LVIS's detection metrics: federated annotation, 300 detections per image, AP by class frequency."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from afl.evaluation.curves import Curves
from afl.evaluation.detections import DetectionArrays
from afl.evaluation.evaluator import Evaluator

log = logging.getLogger(__name__)


class LvisEvaluator(Evaluator):
    """AP, AP_r, AP_c and AP_f by the rules of the official package (Gupta et al. 2019; lvis.LVISEval).

    A class is evaluated in an image only if its presence was checked there: it is annotated, or listed in
    ``neg_category_ids``. If it is listed in ``not_exhaustive_category_ids``, unmatched detections are ignored. Only the best 300
    detections of an image are evaluated; this limit is applied before detections of unchecked classes are dropped.

    ``official`` runs ``lvis``; ``fast`` runs hotcoco. Tests check that both agree. Ground truth with ignored objects, which LVIS's
    files do not have, is always evaluated by ``lvis``.
    """

    def __init__(
        self,
        ground_truth: Mapping,
        max_detections: int = 300,
        backend: str = "fast",
        groups: Sequence[str] | None = None,
        image_cap: int | None = None,
    ) -> None:
        """
        Args:
            ground_truth: LVIS-format dictionary: COCO's lists, with ``neg_category_ids`` and
                ``not_exhaustive_category_ids`` for every image and ``frequency`` for every category.
            max_detections: largest number of detections of an image.
            backend: ``official`` or ``fast``.
            groups: (C,) "r", "c" or "f" of each class, instead of ``frequency``.
            image_cap: see ``Evaluator``.

        Raises:
            ValueError: one of these fields is missing.
        """
        super().__init__(ground_truth, max_detections, backend, groups, image_cap)
        if self.groups is None:
            raise ValueError("LVIS evaluation needs a frequency ('r', 'c' or 'f') for every category")
        if self.backend == "fast" and self.truth.ignored.any():
            log.info(
                "LVIS is evaluated by the package `lvis`, because the fast evaluator does not support ignored objects"
            )
            self.backend = "official"
        self.negative = self._pairs(ground_truth["images"], "neg_category_ids")
        self.not_exhaustive = self._pairs(ground_truth["images"], "not_exhaustive_category_ids")
        # Keys of the images and classes that were checked: the class is annotated there, or known to be absent.
        self._checked = np.union1d(
            self._keys(self.truth.image, self.truth.label), self._keys(*self.negative.T)
        )

    def _pairs(self, images: Iterable[Mapping], field: str) -> np.ndarray:
        """(n, 2) int64 image positions and classes that ``field`` lists; classes that the file lacks are skipped."""
        label_of = {number: label for label, number in enumerate(self.truth.category_ids)}
        pairs = []
        for image in images:
            if field not in image:
                raise ValueError(f"image {image['id']} of the ground truth has no {field}: not an LVIS file")
            position = self._position[image["id"]]
            pairs += [(position, label_of[number]) for number in image[field] if number in label_of]
        return np.array(pairs, np.int64).reshape(-1, 2)

    def _measure(self, found: DetectionArrays) -> dict:
        return self._summarized(self._uncapped(found.best_per_image(self.max_detections)))

    def _uncapped(self, found: DetectionArrays) -> Curves:
        if self.backend == "official":
            from afl.evaluation.official import lvis_curves
        else:
            from afl.evaluation.fast import lvis_curves

            # By LVIS's rules these do not count. Of 300 detections of an image they are most.
            found = found.take(np.flatnonzero(np.isin(self._keys(found.image, found.label), self._checked)))
        return lvis_curves(self.truth, found, self.negative, self.not_exhaustive)

    def _may_be_wrong(self, found: DetectionArrays) -> np.ndarray:
        """Detections of classes that were checked and exhaustively annotated in their image."""
        exhaustive = np.setdiff1d(self._checked, self._keys(*self.not_exhaustive.T))
        return np.isin(self._keys(found.image, found.label), exhaustive)

    def _keys(self, image: np.ndarray, label: np.ndarray) -> np.ndarray:
        """One number for each pair of an image position and a class."""
        return image.astype(np.int64) * self.truth.num_classes + label
