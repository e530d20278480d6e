"""Builder of an annotation index from single records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.defects import DefectLog
from datasets.errors import DataError
from datasets.extreme_points import extreme_points_of_polygons
from datasets.fields import BadRecord
from datasets.index import AnnotationIndex

LARGEST_IMAGE_SIDE = 100_000


class IndexBuilder:
    """Collects images and annotations, which may come in any order, and builds the flat arrays."""

    def __init__(self) -> None:
        self.image_ids: list[int] = []
        self.file_names: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self.image_numbers: list[int] = []
        self.boxes: list[list[float]] = []
        self.labels: list[int] = []
        self.crowd: list[bool] = []
        self.difficult: list[bool] = []
        self.areas: list[float] = []
        self.annotation_ids: list[int] = []
        self.polygons: list[list[np.ndarray]] = []
        self.mask_extremes: dict[int, np.ndarray] = {}

    def add_image(self, image_id: int, file_name: str, width: int, height: int) -> None:
        for name, side in (("width", width), ("height", height)):
            if not 0 < side <= LARGEST_IMAGE_SIDE:
                raise BadRecord("bad_image_size", f"has {name} = {side} pixels", f"correct '{name}'")
        self.image_ids.append(image_id)
        self.file_names.append(file_name)
        self.sizes.append((height, width))

    def add_annotation(
        self,
        image_number: int,
        annotation_id: int,
        label: int,
        box: list[float],
        *,
        area: float,
        crowd: bool = False,
        difficult: bool = False,
        polygons: list[np.ndarray] | None = None,
        mask_extremes: np.ndarray | None = None,
    ) -> None:
        if mask_extremes is not None:
            self.mask_extremes[len(self.labels)] = mask_extremes
        self.image_numbers.append(image_number)
        self.annotation_ids.append(annotation_id)
        self.labels.append(label)
        self.boxes.append(box)
        self.areas.append(area)
        self.crowd.append(crowd)
        self.difficult.append(difficult)
        self.polygons.append(polygons or [])

    def build(
        self,
        *,
        image_root: Path,
        sources: Sequence[Path],
        content_hash: str,
        category_ids: Sequence[int],
        category_names: Sequence[str],
        log: DefectLog,
        **lvis: Any,
    ) -> AnnotationIndex:
        """Build the index.  Annotations are sorted by image and keep their order within each image.

        Raises:
            DataError: there are no classes.
        """
        if not len(category_ids):
            raise DataError(f"{sources[0]} has no classes: name at least one")
        image_numbers = np.asarray(self.image_numbers, dtype=np.int64)
        order = np.argsort(image_numbers, kind="stable")
        counts = np.bincount(image_numbers, minlength=len(self.image_ids))
        parts = [self.polygons[a] for a in order]
        flat = [part for polygons in parts for part in polygons]
        points = np.concatenate(flat) if flat else np.zeros((0, 2))
        part_offsets = offsets_of([len(part) for part in flat])
        annotation_part_offsets = offsets_of([len(polygons) for polygons in parts])
        points = points.astype(np.float32)
        extreme_points = extreme_points_of_polygons(points, part_offsets, annotation_part_offsets)
        if self.mask_extremes:
            for position, a in enumerate(order.tolist()):
                if a in self.mask_extremes:
                    extreme_points[position] = self.mask_extremes[a]
        sizes = np.asarray(self.sizes, dtype=np.int32).reshape(-1, 2)
        return AnnotationIndex(
            image_root=image_root,
            sources=tuple(str(source) for source in sources),
            content_hash=content_hash,
            image_ids=np.asarray(self.image_ids, dtype=np.int64),
            file_names=self.file_names,
            heights=sizes[:, 0],
            widths=sizes[:, 1],
            offsets=offsets_of(counts),
            boxes=np.asarray(self.boxes, dtype=np.float64).reshape(-1, 4)[order],
            labels=np.asarray(self.labels, dtype=np.int32)[order],
            crowd=np.asarray(self.crowd, dtype=bool)[order],
            difficult=np.asarray(self.difficult, dtype=bool)[order],
            areas=np.asarray(self.areas, dtype=np.float64)[order],
            annotation_ids=np.asarray(self.annotation_ids, dtype=np.int64)[order],
            extreme_points=extreme_points,
            polygon_points=points,
            part_offsets=part_offsets,
            annotation_part_offsets=annotation_part_offsets,
            category_ids=np.asarray(category_ids, dtype=np.int64),
            category_names=list(category_names),
            defects=log.defects,
            **lvis,
        )


def offsets_of(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """Start of each group in a flat array, and the end of the last one: (n + 1,) int64."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
