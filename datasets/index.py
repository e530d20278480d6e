"""The annotation index: all annotations of one split in a few flat arrays.

Forked loader workers share flat arrays.  They would copy small Python objects page by page, because reference counts
change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from datasets.defects import Defect


@dataclass(frozen=True, eq=False)
class AnnotationIndex:
    """N images, A annotations, C classes of one split.

    Boxes and points are in continuous pixels; an image spans [0, W] x [0, H].  Classes are numbered 0..C-1 in the order of
    their category ids.

    Attributes:
        image_root: folder to which ``file_names`` are relative.
        sources: the annotation files.
        content_hash: SHA-256 over the sources' bytes, the reader's version and the policy; it identifies the content.
        image_ids: (N,) int64 ids in the data set.
        file_names: (N,) paths below ``image_root``.
        heights, widths: (N,) int32 pixels.
        offsets: (N + 1,) int64; image i has annotations offsets[i] to offsets[i + 1].
        boxes: (A, 4) float64 xyxy, so that an evaluation has the numbers of the file.
        labels: (A,) int32 class numbers.
        crowd: (A,) bool, regions with many objects.
        difficult: (A,) bool, VOC's flag.
        areas: (A,) float64 square pixels, of the mask if the data set has this area, otherwise of the box.
        annotation_ids: (A,) int64.
        extreme_points: (A, 4, 2) float32 (x, y) of top, left, bottom, right; NaN without a mask.
        polygon_points: (V, 2) float32 vertices of all polygons.
        part_offsets: (P + 1,) int64; polygon p has vertices part_offsets[p] to part_offsets[p + 1].
        annotation_part_offsets: (A + 1,) int64; annotation a has polygons annotation_part_offsets[a] to [a +
            1].
        category_ids: (C,) int64 ids in the data set.
        category_names: (C,) names.
        frequency: (C,) "r", "c" or "f" if the data set defines the groups (LVIS), otherwise None.
        negative_labels, negative_offsets: classes verified to be absent, per image (LVIS), otherwise None.
        not_exhaustive_labels, not_exhaustive_offsets: classes not annotated completely, per image (LVIS), otherwise None.
        defects: bad records by kind, counted while reading under the policy ``skip``.
    """

    image_root: Path
    sources: tuple[str, ...]
    content_hash: str
    image_ids: np.ndarray
    file_names: Sequence[str]
    heights: np.ndarray
    widths: np.ndarray
    offsets: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    areas: np.ndarray
    annotation_ids: np.ndarray
    extreme_points: np.ndarray
    polygon_points: np.ndarray
    part_offsets: np.ndarray
    annotation_part_offsets: np.ndarray
    category_ids: np.ndarray
    category_names: Sequence[str]
    frequency: Sequence[str] | None = None
    negative_labels: np.ndarray | None = None
    negative_offsets: np.ndarray | None = None
    not_exhaustive_labels: np.ndarray | None = None
    not_exhaustive_offsets: np.ndarray | None = None
    defects: dict[str, Defect] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def num_classes(self) -> int:
        return len(self.category_ids)

    @property
    def has_masks(self) -> bool:
        """Whether any annotation has a mask and therefore extreme points."""
        return bool(np.isfinite(self.extreme_points).any())

    @property
    def counted(self) -> np.ndarray:
        """(A,) bool, the annotations that are neither crowd regions nor difficult objects."""
        return ~(self.crowd | self.difficult)

    @property
    def image_numbers(self) -> np.ndarray:
        """(A,) int64, the image of each annotation."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def image_path(self, i: int) -> Path:
        return self.image_root / self.file_names[i]

    def annotations(self, i: int) -> slice:
        """Annotations of image i, as a slice of the (A, ...) arrays."""
        return slice(int(self.offsets[i]), int(self.offsets[i + 1]))

    def verified(self, i: int) -> np.ndarray | None:
        """Classes (C,) bool that are known to be absent outside the annotated boxes of image i; None for all classes.

        In LVIS's federated annotation, these are the classes with annotations in the image and those verified to be absent,
        without those that were not annotated completely.
        """
        lists = self._class_lists()
        if not lists:
            return None
        (negative, starts), (not_exhaustive, other_starts) = lists.values()
        mask = np.zeros(self.num_classes, dtype=bool)
        mask[self.labels[self.annotations(i)]] = True
        mask[negative[starts[i] : starts[i + 1]]] = True
        mask[not_exhaustive[other_starts[i] : other_starts[i + 1]]] = False
        return mask

    def _class_lists(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Labels and offsets of the negative and the not exhaustive classes, by name; empty if the data set has none."""
        return {
            name: (labels, offsets)
            for name, labels, offsets in (
                ("negative", self.negative_labels, self.negative_offsets),
                ("not_exhaustive", self.not_exhaustive_labels, self.not_exhaustive_offsets),
            )
            if labels is not None and offsets is not None
        }

    def select(self, numbers: Sequence[int] | np.ndarray) -> AnnotationIndex:
        """The index of the chosen images, in the given order; classes are unchanged."""
        numbers = np.asarray(numbers, dtype=np.int64)
        annotations, offsets = _gather(self.offsets, numbers)
        parts, annotation_part_offsets = _gather(self.annotation_part_offsets, annotations)
        vertices, part_offsets = _gather(self.part_offsets, parts)
        changes: dict = {
            name: getattr(self, name)[annotations]
            for name in ("boxes", "labels", "crowd", "difficult", "areas", "annotation_ids", "extreme_points")
        }
        for name, (labels, label_offsets) in self._class_lists().items():
            kept, new_offsets = _gather(label_offsets, numbers)
            changes |= {f"{name}_labels": labels[kept], f"{name}_offsets": new_offsets}
        digest = hashlib.sha256(self.content_hash.encode() + self.image_ids[numbers].tobytes()).hexdigest()
        return replace(
            self,
            content_hash=digest,
            image_ids=self.image_ids[numbers],
            file_names=[self.file_names[i] for i in numbers],
            heights=self.heights[numbers],
            widths=self.widths[numbers],
            offsets=offsets,
            polygon_points=self.polygon_points[vertices],
            part_offsets=part_offsets,
            annotation_part_offsets=annotation_part_offsets,
            **changes,
        )

    def coco_dict(self) -> dict:
        """The annotations in MS COCO's format, with the data set's own ids, for evaluators.

        ``ignore`` is 1 for crowd regions and difficult objects. If the data set has them, categories have ``frequency``,
        and images have ``neg_category_ids`` and ``not_exhaustive_category_ids``.
        """
        images = [
            {"id": i, "file_name": name, "height": h, "width": w}
            for i, name, h, w in zip(
                self.image_ids.tolist(),
                self.file_names,
                self.heights.tolist(),
                self.widths.tolist(),
                strict=True,
            )
        ]
        keys = {"negative": "neg_category_ids", "not_exhaustive": "not_exhaustive_category_ids"}
        for name, (labels, offsets) in self._class_lists().items():
            listed = self.category_ids[labels].tolist()
            for i, image in enumerate(images):
                image[keys[name]] = listed[offsets[i] : offsets[i + 1]]
        xywh = np.concatenate([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], axis=1).tolist()
        image_ids = np.repeat(self.image_ids, np.diff(self.offsets)).tolist()
        category_ids = self.category_ids[self.labels].tolist()
        areas, ids = self.areas.tolist(), self.annotation_ids.tolist()
        crowd, difficult = self.crowd.astype(int).tolist(), self.difficult.astype(int).tolist()
        annotations = [
            {
                "id": ids[a],
                "image_id": image_ids[a],
                "category_id": category_ids[a],
                "bbox": xywh[a],
                "area": areas[a],
                "iscrowd": crowd[a],
                "difficult": difficult[a],
                "ignore": crowd[a] | difficult[a],
            }
            for a in range(len(ids))
        ]
        names = zip(self.category_ids.tolist(), self.category_names, strict=True)
        categories: list[dict] = [{"id": i, "name": name} for i, name in names]
        if self.frequency is not None:
            for category, frequency in zip(categories, self.frequency, strict=True):
                category["frequency"] = frequency
        return {"images": images, "annotations": annotations, "categories": categories}


def _gather(offsets: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Members of the chosen groups in the order of the groups, and the offsets of the new grouping."""
    counts = np.diff(offsets)[chosen]
    new_offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    members = np.arange(new_offsets[-1]) + np.repeat(offsets[chosen] - new_offsets[:-1], counts)
    return members, new_offsets
