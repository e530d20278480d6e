"""Base class of the evaluators: collects detections by image, in one process or in several.

Call ``reset()``, then ``process(image_ids, detections)`` for each batch, then ``evaluate() -> dict``. With several ranks, each
rank calls ``save(path)``, and rank 0 calls ``merge(paths)`` before ``evaluate()``.
"""

from __future__ import annotations

import io
import json
import logging
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from afl.evaluation.confusion import confusion_counts, precision_by_group, recognition_counts
from afl.evaluation.curves import Curves, summarize
from afl.evaluation.detections import DetectionArrays
from afl.evaluation.ground_truth import GroundTruth
from afl.evaluation.groups import group_means
from datasets.files import arrays_as_bytes, read_checked, write_checked

log = logging.getLogger(__name__)

BACKENDS = ("official", "fast")
METRICS = ("AP", "AP50", "AP75", "AP_s", "AP_m", "AP_l", "AP_r", "AP_c", "AP_f", "AR")
FIXED_METRICS = ("AP_fixed", "AP_fixed_r", "AP_fixed_c", "AP_fixed_f")
FIXED_DETECTIONS = 10_000
"""Detections of each class over the whole set that count for AP_fixed (Dave et al. 2021, section 4)."""


class DetectionsLike(Protocol):
    """Detections of one image: boxes (n, 4) xyxy in pixels of the original image, scores (n,) and labels (n,), as tensors or
    arrays."""

    boxes: object
    scores: object
    labels: object


class Evaluator(ABC):
    """Collects detections; subclasses compute the metrics.

    With ``image_cap`` the evaluator also measures AP without a limit per image: ``AP_fixed`` and its group means
    ``AP_fixed_r``, ``AP_fixed_c`` and ``AP_fixed_f``. These use the 10,000 best detections of each class over the whole set,
    with any number of them in one image (Dave et al., Evaluating Large-Vocabulary Object Detectors: The Devil is in the
    Details, 2021, section 4). With a limit per image the classes compete for the detections of an image. AP_fixed of a class
    depends only on the scores of that class.

    Attributes:
        per_class_fixed: AP_fixed or None by class name; empty before ``evaluate`` and without ``image_cap``.
        precision: by ``all``, ``r``, ``c`` and ``f``: (101,) precision at recalls 0, 0.01, ... 1 and an overlap of 0.5,
            averaged over classes; empty before ``evaluate``.
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
            ground_truth: COCO-format dictionary; labels are positions in its ``categories``.
            max_detections: largest number of detections that count, as the subclass states.
            backend: ``official`` or ``fast``.
            groups: (C,) "r", "c" or "f" of each class, by its frequency in training; None to use the ``frequency`` of the
                categories, or no group metrics if the categories have none.
            image_cap: number of best detections per image that are evaluated, except for AP_fixed; None to evaluate all, without
                AP_fixed.

        Raises:
            ValueError: an option is outside its range, or the ground truth or ``groups`` is not as described.
        """
        for name, limit in (("max_detections", max_detections), ("image_cap", image_cap)):
            if limit is not None and limit < 1:
                raise ValueError(f"{name} must be at least 1, it is {limit}")
        if backend not in BACKENDS:
            raise ValueError(f"the evaluator has the backends {' and '.join(BACKENDS)}, not {backend!r}")
        self.max_detections, self.backend, self.image_cap = max_detections, backend, image_cap
        self.per_class_fixed: dict[str, float | None] = {}
        self.truth = GroundTruth.from_coco(ground_truth)
        self.groups = self.truth.frequency_groups(groups)
        self._position = {number: position for position, number in enumerate(self.truth.image_ids)}
        self.precision: dict[str, list[float]] = {}
        self.reset()

    def reset(self) -> None:
        """Discard all detections."""
        nothing = np.empty(0, np.int32)
        self._parts = [
            DetectionArrays(nothing, nothing, np.empty((0, 4), np.float32), np.empty(0, np.float32))
        ]
        self._processed: set[int] = set()

    def process(self, image_ids: Iterable[int], detections: Sequence[DetectionsLike]) -> None:
        """Add the detections of a batch of images; the scores may be in any order.

        Args:
            image_ids: (B,) original image ids, each at most once between two resets.
            detections: B objects with ``boxes`` (n, 4) xyxy in pixels of the original image, ``scores`` (n,)
                and ``labels`` (n,), as tensors or arrays.

        Raises:
            ValueError: an image is unknown or was processed before, a score or box is not finite, a box has x2 < x1 or
                y2 < y1, a label is outside [0, C), or the arrays have different lengths. No detection of that image is added.
        """
        image_ids = [int(number) for number in image_ids]
        if len(image_ids) != len(detections):
            raise ValueError(f"{len(image_ids)} image ids came with detections of {len(detections)} images")
        for number, found in zip(image_ids, detections, strict=True):
            self._add(number, _array(found.boxes), _array(found.scores), _array(found.labels))

    def process_results(self, results: Iterable[Mapping]) -> None:
        """Add detections in COCO's results format, as ``detections_json`` writes them: ``image_id``, ``category_id``, ``bbox`` (x,
        y, width, height) and ``score``. Other images of the ground truth are processed with zero detections.

        Raises:
            ValueError: a detection has an image or a category that the ground truth does not have, or fails a check of
                ``process``.
        """
        label_of = {category: label for label, category in enumerate(self.truth.category_ids)}
        by_image: dict[int, list[Mapping]] = {number: [] for number in self.truth.image_ids}
        for one in results:
            if one["image_id"] not in by_image or one["category_id"] not in label_of:
                raise ValueError(
                    f"a detection has image_id = {one['image_id']} and category_id = {one['category_id']}, which the ground "
                    "truth does not have: give the detections of this data set"
                )
            by_image[one["image_id"]].append(one)
        for number, own in by_image.items():
            boxes = np.array([one["bbox"] for one in own], np.float64).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            scores = np.array([one["score"] for one in own], np.float64)
            labels = np.array([label_of[one["category_id"]] for one in own], np.int64)
            self._add(number, boxes, scores, labels)

    def _add(self, image_id: int, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> None:
        where = f"detections of image {image_id}"
        if image_id not in self._position:
            raise ValueError(f"{where}: the ground truth has no such image")
        position = self._position[image_id]
        if position in self._processed:
            raise ValueError(f"{where}: the image was processed before; call reset() before a new evaluation")
        boxes = boxes.reshape(-1, 4) if boxes.size == 0 else boxes
        if scores.ndim != 1 or boxes.shape != (len(scores), 4) or labels.shape != scores.shape:
            raise ValueError(
                f"{where}: boxes {boxes.shape}, scores {scores.shape} and labels {labels.shape} were given, "
                "(n, 4), (n,) and (n,) are needed"
            )
        if not np.isfinite(scores).all():
            raise ValueError(f"{where}: a score is not finite ({scores[~np.isfinite(scores)][0]})")
        if not np.isfinite(boxes).all():
            raise ValueError(f"{where}: a box is not finite")
        if len(labels) and not (0 <= labels.min() and labels.max() < self.truth.num_classes):
            raise ValueError(
                f"{where}: labels run from {labels.min()} to {labels.max()}, classes from 0 to "
                f"{self.truth.num_classes - 1}"
            )
        size = boxes[:, 2:] - boxes[:, :2]
        if (size < 0).any():
            raise ValueError(f"{where}: box {boxes[(size < 0).any(1)][0].tolist()} is not (x1, y1, x2, y2)")
        self._processed.add(position)
        image = np.full(len(scores), position, np.int32)
        boxes = np.concatenate([boxes[:, :2], size], axis=1, dtype=np.result_type(boxes, np.float32))
        self._parts.append(DetectionArrays(image, labels.astype(np.int32), boxes, scores.astype(np.float32)))

    def detections(self) -> DetectionArrays:
        """All detections so far; the result does not depend on the order in which images were processed."""
        if len(self._parts) > 1:
            fields = ("image", "label", "boxes", "scores")
            found = DetectionArrays(*(np.concatenate([getattr(p, f) for p in self._parts]) for f in fields))
            self._parts = [found.take(np.argsort(found.image, kind="stable"))]
        return self._parts[0]

    def state(self) -> dict[str, np.ndarray]:
        """This rank's detections as arrays, and the digest of the ground truth that they belong to."""
        return {
            "truth": np.array(self.truth.digest()),
            "processed": np.array(sorted(self._processed), np.int32),
            **vars(self.detections()),
        }

    def save(self, path: str | Path) -> None:
        """Write this rank's detections and a checksum to a file for ``merge``."""
        write_checked(path, arrays_as_bytes(self.state()))

    def merge(self, paths: Iterable[str | Path]) -> None:
        """Replace the detections with those of the files that the ranks saved.

        A sampler that pads its last batch assigns some images to two ranks. For these, the detections of the first file are
        used.

        Raises:
            ValueError: a file is damaged or belongs to another ground truth.
            FileNotFoundError: a file does not exist.
        """
        self.reset()
        own = self.truth.digest()
        for path in paths:
            arrays = _read_state(Path(path))
            if arrays["truth"].item() != own:
                raise ValueError(
                    f"{path} belongs to another data set: its images, classes or annotations are not those of this ground truth; "
                    "evaluate again, all processes with the same files"
                )
            new = set(arrays["processed"].tolist()) - self._processed
            keep = np.isin(arrays["image"], sorted(new))
            self._processed |= new
            part = DetectionArrays(*(arrays[name] for name in ("image", "label", "boxes", "scores")))
            self._parts.append(part.take(keep))

    def detections_json(self) -> bytes:
        """All detections in COCO's results format: a list of ``image_id``, ``category_id`` (both original), ``bbox`` (x, y, width,
        height) and ``score``, with enough digits to restore the exact numbers."""
        found = self.detections()
        image_ids = [json.dumps(number) for number in self.truth.image_ids]
        category_ids = [json.dumps(number) for number in self.truth.category_ids]
        digits = ".9g" if found.boxes.dtype == np.float32 else ".17g"
        rows = (
            f'{{"image_id":{image_ids[image]},"category_id":{category_ids[label]},'
            f'"bbox":[{x:{digits}},{y:{digits}},{w:{digits}},{h:{digits}}],"score":{score:.9g}}}'
            for image, label, (x, y, w, h), score in zip(
                found.image.tolist(),
                found.label.tolist(),
                found.boxes.tolist(),
                found.scores.tolist(),
                strict=True,
            )
        )
        return ("[" + ",\n".join(rows) + "]\n").encode()

    def evaluate(self) -> dict:
        """Compute the metrics over all images of the ground truth.

        Returns:
            AP, AP50, AP75, AP_s, AP_m, AP_l, AP_r, AP_c, AP_f and AR in [0, 1], or None if undefined (no such object or
            class), and ``per_class``: AP or None by class name. With ``image_cap`` also AP_fixed, AP_fixed_r, AP_fixed_c and
            AP_fixed_f.
        """
        missing = len(self.truth.image_ids) - len(self._processed)
        if missing:
            log.warning(
                "%d of %d images were not processed; they are evaluated without detections",
                missing,
                len(self.truth.image_ids),
            )
        metrics = self._measure(self._counted())
        if self.image_cap is None:
            return metrics
        return metrics | self._fixed(self.detections().best_per_class(FIXED_DETECTIONS))

    def _counted(self) -> DetectionArrays:
        """The detections within the limit of an image, which everything but AP_fixed counts."""
        found = self.detections()
        return found if self.image_cap is None else found.best_per_image(self.image_cap)

    def _fixed(self, found: DetectionArrays) -> dict[str, float | None]:
        figures = summarize(self._uncapped(found), self.truth.names, self.groups)
        self.per_class_fixed = figures["per_class"]
        return {"AP_fixed": figures["AP"]} | fixed_group_means(self.per_class_fixed, self.groups)

    def confusion(self) -> dict[tuple[int, int], int]:
        """Count how often an object of one class is detected as another; see ``confusion_counts``."""
        found = self._counted()
        return confusion_counts(self.truth, found, self._may_be_wrong(found))

    def recognition(self) -> dict[str, tuple[int, int, int]]:
        """Numbers of objects, of localised ones and of recognised ones by frequency group; see ``recognition_counts``."""
        localised, recognised = recognition_counts(self.truth, self._counted())
        group = np.array(self.groups or ["all"] * self.truth.num_classes)[self.truth.label]
        counts = {}
        for name in dict.fromkeys(self.groups or ["all"]):
            own = (group == name) & ~self.truth.ignored
            counts[name] = int(own.sum()), int(localised[own].sum()), int(recognised[own].sum())
        return counts

    def _may_be_wrong(self, found: DetectionArrays) -> np.ndarray | None:
        """(N,) bool, detections that are wrong if they match no object; None for all."""
        return None

    @abstractmethod
    def _measure(self, found: DetectionArrays) -> dict:
        """The metrics that ``evaluate`` returns, except AP_fixed; ``found`` is already limited per image."""

    @abstractmethod
    def _uncapped(self, found: DetectionArrays) -> Curves:
        """Curves of these detections without a limit per image."""

    def _summarized(self, curves: Curves) -> dict:
        """COCO's metrics of ``curves``; also stores the precision for charts in ``self.precision``."""
        self.precision = precision_by_group(curves.precision[curves.row_of(50), :, :, 0], self.groups)
        return summarize(curves, self.truth.names, self.groups)


def fixed_group_means(
    per_class: Mapping[str, float | None], groups: Sequence[str] | None
) -> dict[str, float | None]:
    """AP_fixed_r, AP_fixed_c and AP_fixed_f: means of AP_fixed over the groups of classes."""
    means = group_means(per_class, groups)
    return {name.replace("AP_", "AP_fixed_"): value for name, value in means.items()}


def _array(values: Any) -> np.ndarray:
    """Convert a tensor on any device, an array or a list to a numpy array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if values.is_floating_point() and values.element_size() < 4:  # numpy does not support bfloat16
            values = values.float()
        return values.numpy()
    return np.asarray(values)


def _read_state(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(io.BytesIO(read_checked(path)), allow_pickle=False) as file:
            return {name: file[name] for name in ("truth", "processed", "image", "label", "boxes", "scores")}
    except (zipfile.BadZipFile, KeyError, EOFError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); evaluate again") from error
