"""What the readers share: checked fields of untrusted records, and the builder of an annotation index."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from datasets.defects import Defect, DefectLog, warn_of_defects
from datasets.errors import DataError
from datasets.extreme_points import extreme_points_of_polygons
from datasets.images import is_file_cut_off
from datasets.index import AnnotationIndex

# Annotation tools round: a box may stick out of its image by this many pixels without being called wrong.
OVERHANG = 1.0
LARGEST_IMAGE_SIDE = 100_000
# A thinner box has no area; float32 coordinates in the largest image are 0.008 pixels apart.
THINNEST_BOX = 0.01
# Larger coordinates or areas are no pixels; neither are infinity and NaN, which compare as false.
LARGEST_NUMBER = 1e12
DEFAULT_REMEDY = "set dataset.root to a folder that has it"


class BadRecord(Exception):
    """A record cannot be used; caught by the reader, which reports it under its kind."""

    def __init__(self, kind: str, what: str, remedy: str) -> None:
        super().__init__(what)
        self.kind, self.what, self.remedy = kind, what, remedy


def integer(record: dict, name: str) -> int:
    """An integer field; whole floats are accepted, booleans and text are not."""
    if name not in record:
        raise BadRecord("missing_field", f"has no '{name}'", f"add '{name}'")
    value = record[name]
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if not whole or isinstance(value, bool) or abs(value) >= 2**63:
        raise BadRecord("bad_field", f"has {name} = {shown(value)}, not a whole number", f"correct '{name}'")
    return int(value)


def numbers(record: dict, name: str, count: int) -> list[float]:
    """A list of ``count`` finite numbers."""
    if name not in record:
        raise BadRecord("missing_field", f"has no '{name}'", f"add '{name}'")
    value = record[name]
    if not isinstance(value, list) or len(value) != count or not all(map(is_finite_number, value)):
        raise BadRecord(
            "bad_field", f"has {name} = {shown(value)}, not {count} finite numbers", f"correct '{name}'"
        )
    return value


def text(record: dict, name: str) -> str:
    """A non-empty text field."""
    if name not in record:
        raise BadRecord("missing_field", f"has no '{name}'", f"add '{name}'")
    value = record[name]
    if not isinstance(value, str) or not value:
        raise BadRecord("bad_field", f"has {name} = {shown(value)}, not a text", f"correct '{name}'")
    return value


def shown(value: object) -> str:
    """A value as it may stand in a message."""
    full = repr(value)
    return full if len(full) <= 80 else full[:77] + "..."


def is_finite_number(value: object) -> bool:
    """Whether a JSON value is a number that can be a coordinate or an area."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_NUMBER


def checked_box(xyxy: Sequence[float], width: int, height: int, log: DefectLog, where: str) -> list[float]:
    """A box that lies in its image and has an area.

    Boxes that stick out by more than a pixel are reported and, under ``skip``, cut at the image border.

    Raises:
        BadRecord: no area, or nothing of it inside the image.
    """
    x1, y1, x2, y2 = xyxy
    if not (x2 - x1 >= THINNEST_BOX and y2 - y1 >= THINNEST_BOX):
        raise BadRecord(
            "degenerate_box", f"has a box without area, xyxy {_box_text(xyxy)}", "give it an area"
        )
    inner_width, inner_height = min(x2, width) - max(x1, 0), min(y2, height) - max(y1, 0)
    if not (inner_width >= THINNEST_BOX and inner_height >= THINNEST_BOX):
        what = f"has a box outside its image of {width} x {height} pixels, xyxy {_box_text(xyxy)}"
        raise BadRecord("box_outside_image", what, "correct the box or the image size")
    if min(x1, y1) < -OVERHANG or x2 > width + OVERHANG or y2 > height + OVERHANG:
        what = f"has a box that sticks out of its image of {width} x {height} pixels, xyxy {_box_text(xyxy)}"
        log.report("box_sticks_out", f"{where} {what}", "cut it at the border")
        return [max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))]
    return [x1, y1, x2, y2]


def _box_text(xyxy: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in xyxy) + ")"


def require_file(path: Path, remedy: str) -> Path:
    """The path, when it is a file.

    Raises:
        DataError: it is not; the message ends with what gets it.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}: {remedy}")
    return path


def require_folder(path: Path, remedy: str) -> Path:
    """The path, when it is a folder.

    Raises:
        DataError: it is not; the message ends with what gets it.
    """
    if not path.is_dir():
        raise DataError(f"there is no folder {path}: {remedy}")
    return path


def load_json(path: Path) -> dict:
    """A JSON file whose top level is an object.

    Raises:
        DataError: unreadable, not JSON, or something else than an object.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}); fetch or export the file again") from error
    if not isinstance(content, dict):
        raise DataError(
            f"{path} holds a {type(content).__name__}, not an object with images, annotations, categories"
        )
    return content


def records(content: dict, name: str, path: Path, log: DefectLog) -> list[tuple[int, dict]]:
    """Numbered records of one list of a JSON file; what is no object is reported."""
    if not isinstance(content.get(name), list):
        raise DataError(f"{path} has no list '{name}'; it is not a COCO-format annotation file")
    result = []
    for number, record in enumerate(content[name]):
        if isinstance(record, dict):
            result.append((number, record))
        else:
            log.report(
                "bad_record", f"{path}: {name}[{number}] is {shown(record)}, not an object", "remove it"
            )
    return result


class IndexBuilder:
    """Collects images and their annotations, in any order of annotations, and makes the flat arrays."""

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
        **lvis: object,
    ) -> AnnotationIndex:
        """The index; annotations are sorted by image, keeping their order within each."""
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
            boxes=np.asarray(self.boxes, dtype=np.float32).reshape(-1, 4)[order],
            labels=np.asarray(self.labels, dtype=np.int32)[order],
            crowd=np.asarray(self.crowd, dtype=bool)[order],
            difficult=np.asarray(self.difficult, dtype=bool)[order],
            areas=np.asarray(self.areas, dtype=np.float32)[order],
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


def without_bad_images(
    index: AnnotationIndex, image_root: Path, sources: Sequence[Path], log: DefectLog, remedy: str
) -> AnnotationIndex:
    """The index, placed where its files are now, without images that are missing or, under ``skip``, cut off.

    Missing files are found in folder listings: a hundred thousand images take a fraction of a second.  Only
        ``skip``
    opens the files, since under ``error`` a broken image is reported as soon as it is decoded.

    Raises:
        DataError: an image is missing, under the policy ``error``.
    """
    # A cached index remembers the place it was first read from; the same files may lie elsewhere now.
    places = {
        **dict(zip(index.sources, map(str, sources), strict=True)),
        str(index.image_root): str(image_root),
    }
    index = replace(
        index,
        image_root=image_root,
        sources=tuple(str(source) for source in sources),
        defects={kind: _moved(defect, places) for kind, defect in index.defects.items()},
    )
    listings: dict[str, set[str]] = {}
    kept = np.ones(len(index), dtype=bool)
    for i, name in enumerate(index.file_names):
        folder, _, base = name.rpartition("/")
        if folder not in listings:
            path = index.image_root / folder
            listings[folder] = set(os.listdir(path)) if path.is_dir() else set()
        named = f"image {index.image_path(i)} (id {index.image_ids[i]})"
        if base not in listings[folder]:
            kept[i] = False
            log.report("missing_image", f"{named} does not exist", remedy)
        elif log.policy == "skip" and _is_broken(index.image_path(i)):
            kept[i] = False
            log.report("broken_image", f"{named} is damaged", "fetch the image again")
    defects = {**index.defects, **log.defects}
    warn_of_defects(", ".join(index.sources), defects)
    return replace(index if kept.all() else index.select(np.flatnonzero(kept)), defects=defects)


def _moved(defect: Defect, places: dict[str, str]) -> Defect:
    """The defect with examples that begin with a path of today instead of the one that it was found under."""
    examples = []
    for example in defect.examples:
        old = next((place for place in places if example.startswith(place)), "")
        examples.append(places.get(old, "") + example[len(old) :])
    return Defect(defect.count, examples)


def _is_broken(path: Path) -> bool:
    try:
        return is_file_cut_off(path)
    except OSError:
        return True


def offsets_of(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """Start of each group in a flat array, and the end of the last one: (n + 1,) int64."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
