"""The official LVIS evaluation, visiting only what is there.

``lvis.LVISEval`` walks through all (image, class) pairs, 24 million of them on the validation set, four
times, and keeps a list for each. Nearly all are empty. Here detections and ground truth are sorted by (class,
image) once, and only pairs with both go through the matching.
"""

from __future__ import annotations

import datetime

import numpy as np
from lvis.eval import LVISEval, Params
from pycocotools.mask import iou as pairwise_iou

from afl.evaluation.detections import DetectionArrays
from afl.evaluation.ground_truth import GroundTruth

FALSE_POSITIVE, TRUE_POSITIVE, IGNORED = 0, 1, 2


class SparseLVISEval(LVISEval):
    """``evaluate`` and ``accumulate`` over arrays; parameters and the form of ``eval`` are the official ones.

    I images, C classes, A = 4 ranges of area, T = 10 overlaps. A pair's key is class * I + image.
    """

    def __init__(
        self,
        truth: GroundTruth,
        found: DetectionArrays,
        negative: np.ndarray,
        not_exhaustive: np.ndarray,
    ) -> None:
        """
        Args:
            truth: annotations; ``ignored`` ones are matched without being counted.
            found: detections, already cut to the best of each image.
            negative: (n, 2) image positions and classes known to be absent.
            not_exhaustive: (n, 2) image positions and classes of which only some objects are annotated.
        """
        # super().__init__ would read files and build the dictionaries that this class exists to avoid
        self.params = Params("bbox")
        self.params.img_ids = truth.image_ids
        self.params.cat_ids = truth.category_ids
        self.truth = truth
        self.found = found
        self.negative = self._key(negative[:, 0], negative[:, 1])
        self.not_exhaustive = self._key(not_exhaustive[:, 0], not_exhaustive[:, 1])
        self.eval = {}

    def _key(self, image: np.ndarray, label: np.ndarray) -> np.ndarray:
        return label.astype(np.int64) * len(self.params.img_ids) + image

    def evaluate(self) -> None:
        """Match every pair's detections, best first, to its objects, for all areas and overlaps at once."""
        areas = np.array(self.params.area_rng, np.float64)
        overlaps = np.minimum(self.params.iou_thrs, 1 - 1e-10)

        # the official loader drops what has no area
        truth_rows = np.flatnonzero(self.truth.area > 0)
        truth_key = self._key(self.truth.image[truth_rows], self.truth.label[truth_rows])
        order = np.argsort(truth_key, kind="stable")
        truth_rows, truth_key = truth_rows[order], truth_key[order]
        truth_area = self.truth.area[truth_rows]
        truth_ignored = self.truth.ignored[truth_rows] | _outside(truth_area, areas)

        rows, key = self._checked_detections(np.union1d(truth_key, self.negative))
        order = np.lexsort((-self.found.scores[rows], key))
        rows, key = rows[order], key[order]
        sizes = self.found.boxes[rows, 2:].astype(np.float64)
        # what an unmatched detection is: ignored outside the range, or where not every object is annotated
        unmatched = _outside(sizes[:, 0] * sizes[:, 1], areas) | np.isin(key, self.not_exhaustive)
        outcome = np.where(unmatched.T, np.int8(IGNORED), np.int8(FALSE_POSITIVE))
        outcome = np.repeat(outcome[..., None], len(overlaps), axis=2)

        pairs, start = np.unique(key, return_index=True)
        end = np.append(start[1:], len(key))
        truth_start = np.searchsorted(truth_key, pairs, side="left")
        truth_end = np.searchsorted(truth_key, pairs, side="right")
        for pair in np.flatnonzero(truth_end > truth_start):
            here = slice(start[pair], end[pair])
            there = slice(truth_start[pair], truth_end[pair])
            iou = pairwise_iou(
                self.found.boxes[rows[here]].astype(np.float64),
                self.truth.boxes[truth_rows[there]],
                np.zeros(there.stop - there.start, np.uint8),
            )
            _match(iou, overlaps, truth_ignored[:, there], outcome[here])

        self.score = self.found.scores[rows]
        self.label = key // len(self.params.img_ids)
        self.outcome = outcome
        self.num_truth = np.stack(
            [
                np.bincount(self.truth.label[truth_rows[~ignored]], minlength=len(self.params.cat_ids))
                for ignored in truth_ignored
            ]
        )

    def _checked_detections(self, checked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and keys of the detections whose class was looked for in their image (keys ``checked``,
        sorted)."""
        key = self._key(self.found.image, self.found.label)
        solid = (self.found.boxes[:, 2:].astype(np.float64).prod(1)) > 0
        place = np.searchsorted(checked, key)
        known = np.append(checked, -1)[place] == key
        rows = np.flatnonzero(solid & known)
        return rows, key[rows]

    def accumulate(self) -> None:
        """Interpolated precision (T, 101, C, A) and recall (T, C, A), -1 where there is nothing to find."""
        overlaps, recalls = self.params.iou_thrs, self.params.rec_thrs
        num_classes, num_areas = len(self.params.cat_ids), len(self.params.area_rng)
        precision = -np.ones((len(overlaps), len(recalls), num_classes, num_areas))
        recall = -np.ones((len(overlaps), num_classes, num_areas))
        bounds = np.searchsorted(self.label, np.arange(num_classes + 1))
        for label in range(num_classes):
            here = slice(bounds[label], bounds[label + 1])
            best_first = np.argsort(-self.score[here], kind="stable")
            outcome = self.outcome[here][best_first]
            for area in range(num_areas):
                total = self.num_truth[area, label]
                if total == 0:
                    continue
                true = np.cumsum(outcome[:, area] == TRUE_POSITIVE, axis=0, dtype=np.float64).T
                false = np.cumsum(outcome[:, area] == FALSE_POSITIVE, axis=0, dtype=np.float64).T
                recall[:, label, area] = true[:, -1] / total if true.size else 0
                precision[:, :, label, area] = _interpolated(
                    true / total, true / (true + false + np.spacing(1)), recalls
                )
        self.eval = {
            "params": self.params,
            "counts": [len(overlaps), len(recalls), num_classes, num_areas],
            "date": datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S"),
            "precision": precision,
            "recall": recall,
        }


def _outside(area: np.ndarray, ranges: np.ndarray) -> np.ndarray:
    """(A, n) bool: areas (n,) outside each of the ranges (A, 2), both ends belonging to the range."""
    return (area < ranges[:, :1]) | (area > ranges[:, 1:])


def _match(iou: np.ndarray, overlaps: np.ndarray, ignored: np.ndarray, outcome: np.ndarray) -> None:
    """Give each detection, best score first, the free object of largest overlap, ignored ones last.

    Args:
        iou: (D, G) of detections by falling score and objects.
        overlaps: (T,) least IoU of a match.
        ignored: (A, G) objects that are not counted in a range of area.
        outcome: (D, A, T) int8, written for the matched ones.
    """
    free = np.ones((len(ignored), len(overlaps), iou.shape[1]), bool)
    counted = ~ignored[:, None, :]
    result = np.where(ignored, IGNORED, TRUE_POSITIVE).astype(np.int8)
    for row in np.flatnonzero(iou.max(axis=1) >= overlaps[0]):
        reached = free & (iou[row] >= overlaps[:, None])
        preferred = reached & counted
        candidates = np.where(preferred.any(axis=2, keepdims=True), preferred, reached)
        matched = candidates.any(axis=2)
        # of equal overlaps the last object, as in the official loop
        overlap = np.where(candidates, iou[row], -1.0)
        choice = iou.shape[1] - 1 - overlap[..., ::-1].argmax(axis=2)
        area, threshold = np.nonzero(matched)
        chosen = choice[area, threshold]
        free[area, threshold, chosen] = False
        outcome[row, area, threshold] = result[area, chosen]


def _interpolated(recall: np.ndarray, precision: np.ndarray, recalls: np.ndarray) -> np.ndarray:
    """(T, R) largest precision (T, n) at any recall (T, n) of at least each of ``recalls`` (R,), else 0."""
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    envelope = np.concatenate([envelope, np.zeros((len(envelope), 1))], axis=1)
    return np.stack(
        [
            row[np.searchsorted(reached, recalls, side="left")]
            for row, reached in zip(envelope, recall, strict=True)
        ]
    )
