"""Confusion of classes: objects and detections are matched regardless of class, and counted by class and frequency group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from pycocotools.mask import iou as pairwise_iou

from afl.evaluation.detections import DetectionArrays
from afl.evaluation.ground_truth import GroundTruth
from afl.evaluation.groups import GROUPS

MIN_SCORE, IOU = 0.3, 0.5
BACKGROUND = -1
ITS_CLASS, NOTHING = "its class", "nothing"


def confusion_counts(
    truth: GroundTruth, found: DetectionArrays, may_be_wrong: np.ndarray | None = None
) -> dict[tuple[int, int], int]:
    """Count how often an object of one class is detected as another class.

    In each image, detections with a score of at least ``MIN_SCORE`` are matched in order of descending score. Each is matched to
    the unmatched object with the largest overlap, regardless of class, if the overlap is at least ``IOU``. An unmatched
    detection that overlaps an ignored object (crowd, difficult) by at least ``IOU`` is not counted. The overlap with a crowd is
    the part of the detection inside it, as in COCO's evaluation.

    Args:
        truth: of all images.
        found: sorted by image, as ``Evaluator.detections`` returns them.
        may_be_wrong: (N,) bool, detections that are counted when they match no object; None for all. With LVIS these are
            detections of classes that were checked in their image.

    Returns:
        Counts by (class of the object, class of the detection). ``BACKGROUND`` replaces the class of the object for unmatched
        detections, and the class of the detection for unmatched objects. Pairs that do not occur are missing.
    """
    may_be_wrong = np.ones(len(found), bool) if may_be_wrong is None else may_be_wrong
    counts: Counter[tuple[int, int]] = Counter()
    for objects, rows in _by_image(truth, found, MIN_SCORE):
        ignored = truth.ignored[objects]
        if len(rows) and len(objects):
            overlap = pairwise_iou(
                found.boxes[rows].astype(float), truth.boxes[objects], truth.crowd[objects]
            )
        else:
            overlap = np.zeros((len(rows), len(objects)))
        free = ~ignored
        for row, own in zip(rows, overlap, strict=True):
            best = int(np.argmax(np.where(free, own, -1.0))) if free.any() else -1
            if best >= 0 and own[best] >= IOU:
                free[best] = False
                counts[int(truth.label[objects[best]]), int(found.label[row])] += 1
            elif may_be_wrong[row] and not (own[ignored] >= IOU).any():
                counts[BACKGROUND, int(found.label[row])] += 1
        for label in truth.label[objects[free]]:
            counts[int(label), BACKGROUND] += 1
    return dict(sorted(counts.items()))


def recognition_counts(truth: GroundTruth, found: DetectionArrays) -> tuple[np.ndarray, np.ndarray]:
    """Find objects that are localised, and among them those whose class is recognised. Localisation and classification are
    separated, and no score threshold is needed.

    An object is localised if a detection of any class overlaps it by at least ``IOU``. It is recognised if the detection with the
    highest score among these has its class. Detections may be shared by objects.

    Args:
        truth: of all images.
        found: sorted by image.

    Returns:
        (A,) bool localised and (A,) bool recognised, of all annotations, the ignored ones included.
    """
    localised, recognised = np.zeros((2, len(truth.label)), bool)
    for objects, rows in _by_image(truth, found):
        if not len(objects) or not len(rows):
            continue
        boxes = found.boxes[rows].astype(float)
        close = pairwise_iou(boxes, truth.boxes[objects], np.zeros(len(objects), bool)) >= IOU
        localised[objects] = close.any(axis=0)
        best = found.label[rows[close.argmax(axis=0)]]
        recognised[objects] = localised[objects] & (best == truth.label[objects])
    return localised, recognised


def _by_image(
    truth: GroundTruth, found: DetectionArrays, min_score: float = -np.inf
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The annotations of each image, and its detections with at least this score, the highest score first."""
    numbers = np.arange(len(truth.image_ids) + 1)
    annotations = np.argsort(truth.image, kind="stable")
    detections = np.flatnonzero(found.scores >= min_score)
    starts = np.searchsorted(truth.image[annotations], numbers)
    found_starts = np.searchsorted(found.image[detections], numbers)
    for number in numbers[:-1]:
        rows = detections[found_starts[number] : found_starts[number + 1]]
        order = np.argsort(-found.scores[rows], kind="stable")
        yield annotations[starts[number] : starts[number + 1]], rows[order]


def confusion_by_group(
    counts: Mapping[tuple[int, int], int], groups: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Sum the counts by frequency group.

    Args:
        counts: of ``confusion_counts``.
        groups: (C,) "r", "c" or "f".

    Returns:
        Counts by row and column. Rows are the object's group, or background. Columns are ``its class``, the group of a wrong
        class, or ``nothing``.
    """
    columns = (ITS_CLASS, *GROUPS, NOTHING)
    table = {row: dict.fromkeys(columns, 0) for row in (*GROUPS, "background")}
    for (actual, predicted), number in counts.items():
        row = "background" if actual == BACKGROUND else groups[actual]
        if predicted == BACKGROUND:
            column = NOTHING
        else:
            column = ITS_CLASS if actual == predicted else groups[predicted]
        table[row][column] += number
    return table


def precision_by_group(precision: np.ndarray, groups: Sequence[str] | None) -> dict[str, list[float]]:
    """Interpolated precision at 101 recalls, mean over the classes of each frequency group and over all.

    Args:
        precision: (101, C) at one overlap, -1 for classes without an object.
        groups: (C,) "r", "c" or "f", or None.

    Returns:
        (101,) by ``all``, ``r``, ``c`` and ``f``; groups without a class that has an object are left out.
    """
    members = {"all": np.ones(precision.shape[1], bool)}
    members |= {group: np.array([own == group for own in groups], bool) for group in GROUPS} if groups else {}
    curves = {}
    for name, chosen in members.items():
        defined = precision[:, chosen & (precision[0] > -1)]
        if defined.shape[1]:
            curves[name] = defined.mean(axis=1).tolist()
    return curves
