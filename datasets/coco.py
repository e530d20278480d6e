"""Reader of MS COCO annotation files (instances_*.json), and of any data set in that format.

https://cocodataset.org/#format-data.  Category ids may have gaps; classes are numbered in the order of their ids.  Crowd
regions are kept and flagged.  Extreme points come from polygons, and from run-length masks of single objects.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from datasets.defects import DefectLog, Policy
from datasets.extreme_points import extreme_points_of_mask
from datasets.fields import (
    OVERHANG,
    BadRecord,
    checked_box,
    class_name,
    inner_path,
    integer,
    is_finite_number,
    left_out,
    load_json,
    numbers,
    records,
    shown,
    text,
)
from datasets.image_check import without_bad_images
from datasets.index import AnnotationIndex
from datasets.index_builder import IndexBuilder
from datasets.index_cache import cached_index
from datasets.locations import DEFAULT_REMEDY, require_file, require_folder

READER_VERSION = "coco-2"


def read_coco(
    annotations: Path | str,
    image_root: Path | str,
    *,
    policy: Policy = "error",
    cache: Path | str | None = None,
    remedy: str = DEFAULT_REMEDY,
) -> AnnotationIndex:
    """Read one split.

    Args:
        annotations: the JSON file.
        image_root: folder of the images, to which ``file_name`` is relative.
        policy: how to handle bad records: stop at the first, or count them and continue without them.
        cache: folder for parsed annotations and the result of the image check; None repeats both every time.
        remedy: how to get the data set, for the message about a missing file.

    Raises:
        DataError: a file is missing or damaged, there are no classes, or (policy ``error``) a record or image is bad.
    """
    return read_json_split(
        READER_VERSION,
        annotations,
        image_root,
        lambda record: text(record, "file_name"),
        policy,
        cache,
        remedy,
    )


def read_json_split(
    reader: str,
    annotations: Path | str,
    image_root: Path | str,
    file_name: Callable[[dict], str],
    policy: Policy,
    cache: Path | str | None,
    remedy: str,
    more: Callable[..., dict[str, Any]] = lambda *_: {},
) -> AnnotationIndex:
    """One split in MS COCO's format or an extension of it.

    Args:
        reader: name and version of the format, part of the key of the cache.
        file_name: maps an image record to its path below the image root.
        more: maps the file's content, its path, the builder, the labels and the log to further fields of the index.

    The other arguments and the errors are those of ``read_coco``.
    """
    path, root = require_file(annotations, remedy), require_folder(image_root, remedy)
    log = DefectLog(policy)

    def build(content_hash: str) -> AnnotationIndex:
        content = load_json(path)
        builder = IndexBuilder()
        labels, names = read_categories(content, path, log)
        image_numbers = read_images(content, path, log, builder, file_name)
        read_annotations(content, path, log, builder, labels, image_numbers)
        return builder.build(
            image_root=root,
            sources=[path],
            content_hash=content_hash,
            category_ids=list(labels),
            category_names=names,
            log=log,
            **more(content, path, builder, labels, log),
        )

    settings = {"policy": policy}
    index = cached_index(build, reader=reader, sources=[path], settings=settings, cache=cache)
    return without_bad_images(index, root, [path], log, remedy, cache)


def read_categories(content: dict, path: Path, log: DefectLog) -> tuple[dict[int, int], list[str]]:
    """The class number of each category id, in the order of the ids, and the names of the classes."""
    found: dict[int, str] = {}
    ids: dict[str, int] = {}
    for number, record in records(content, "categories", path, log):
        where = f"{path}: categories[{number}]"
        try:
            category_id, name = integer(record, "id"), class_name(text(record, "name"))
            if category_id in found:
                raise BadRecord(
                    "duplicate_category_id", f"repeats id {category_id}", "give each category its own id"
                )
            if name in ids:
                problem = f"has id {category_id} and the name {shown(name)} of category {ids[name]}"
                raise BadRecord(
                    "duplicate_class_name",
                    problem,
                    "rename one of them, or give the annotations of both one category_id",
                )
            found[category_id] = name
            ids[name] = category_id
        except BadRecord as bad:
            log.report(bad.kind, f"{where} {bad.problem}", bad.remedy)
    ordered = sorted(found)
    return {category_id: label for label, category_id in enumerate(ordered)}, [found[i] for i in ordered]


def read_images(
    content: dict, path: Path, log: DefectLog, builder: IndexBuilder, file_name: Callable[[dict], str]
) -> dict[int, int]:
    """The number in the index of each image id; ``file_name`` maps a record to its path below the image root."""
    found: dict[int, int] = {}
    for number, record in records(content, "images", path, log):
        where = f"{path}: images[{number}]"
        try:
            image_id = integer(record, "id")
            where = f"{path}: image {image_id}"
            if image_id in found:
                raise BadRecord(
                    "duplicate_image_id", "has an id that an earlier image has", "give each its own id"
                )
            name = inner_path(file_name(record))
            builder.add_image(image_id, name, integer(record, "width"), integer(record, "height"))
            found[image_id] = len(found)
        except BadRecord as bad:
            log.report(bad.kind, f"{where} {bad.problem}", bad.remedy)
    return found


def read_annotations(
    content: dict,
    path: Path,
    log: DefectLog,
    builder: IndexBuilder,
    labels: dict[int, int],
    image_numbers: dict[int, int],
) -> None:
    """Add all annotations of the images in ``image_numbers``.

    The annotations of a category or image that was left out are left out without another report.
    """
    seen: set[int] = set()
    bad_categories, bad_images = (
        left_out(content, "categories", labels),
        left_out(content, "images", image_numbers),
    )
    for number, record in records(content, "annotations", path, log):
        where = f"{path}: annotations[{number}]"
        try:
            annotation_id = integer(record, "id")
            where = f"{path}: annotation {annotation_id}"
            if annotation_id in seen:
                problem = "has an id that an earlier annotation has"
                raise BadRecord("duplicate_annotation_id", problem, "give each its own id")
            image_id, category_id = integer(record, "image_id"), integer(record, "category_id")
            if category_id in bad_categories or image_id in bad_images:
                continue
            if category_id not in labels:
                problem = f"has category_id = {category_id}, which 'categories' does not list"
                raise BadRecord("unknown_category", problem, "add the category or correct the id")
            if image_id not in image_numbers:
                problem = f"has image_id = {image_id}, which 'images' does not list"
                raise BadRecord("unknown_image", problem, "add the image or correct the id")
            image_number = image_numbers[image_id]
            height, width = builder.sizes[image_number]
            x, y, w, h = numbers(record, "bbox", 4)
            box = checked_box((x, y, x + w, y + h), width, height, log, where)
            # Exporters write null for optional fields.
            crowd = bool(integer(record, "iscrowd")) if record.get("iscrowd") is not None else False
            area = (
                numbers({"area": [record["area"]]}, "area", 1)[0] if record.get("area") is not None else w * h
            )
            if area < 0:
                raise BadRecord("bad_field", f"has area = {shown(area)}", "correct 'area'")
            polygons, mask_extremes = _segmentation(
                record.get("segmentation"), crowd, width, height, log, where
            )
            builder.add_annotation(
                image_number,
                annotation_id,
                labels[category_id],
                box,
                area=area,
                crowd=crowd,
                polygons=polygons,
                mask_extremes=mask_extremes,
            )
            seen.add(annotation_id)
        except BadRecord as bad:
            log.report(bad.kind, f"{where} {bad.problem}", bad.remedy)


def _segmentation(
    value: object, crowd: bool, width: int, height: int, log: DefectLog, where: str
) -> tuple[list[np.ndarray], np.ndarray | None]:
    """Polygons of a mask, or the extreme points of a run-length mask; neither for crowds and objects without a mask.

    Empty polygons, which some exporters write for objects without a mask, are left out. A bad mask is reported. Under ``skip``
    the object keeps its box and loses its mask.
    """
    if not value or crowd:
        return [], None
    try:
        if isinstance(value, dict):
            return [], extreme_points_of_mask(_decode(value, width, height))
        if not isinstance(value, list):
            raise ValueError(f"it is {shown(value)}")
        return [_polygon(part, width, height) for part in value if part != []], None
    except (ValueError, TypeError, KeyError) as error:
        log.report(
            "bad_segmentation", f"{where} has a 'segmentation' that cannot be used: {error}", "correct it"
        )
        return [], None


def _polygon(part: object, width: int, height: int) -> np.ndarray:
    if not isinstance(part, list) or len(part) < 6 or len(part) % 2:
        raise ValueError(f"a polygon needs x, y of three or more points, got {shown(part)}")
    if not all(map(is_finite_number, part)):
        raise ValueError(f"a polygon has coordinates that are not finite numbers: {shown(part)}")
    if min(part) < -OVERHANG or max(part[::2]) > width + OVERHANG or max(part[1::2]) > height + OVERHANG:
        raise ValueError(f"a polygon leaves the image of {width} x {height} pixels: {shown(part)}")
    return np.asarray(part, dtype=np.float64).reshape(-1, 2)


def _decode(rle: dict, width: int, height: int) -> np.ndarray:
    """Pixels (H, W) of a run-length mask: alternating runs of 0 and 1, down the columns."""
    counts = rle["counts"]
    if rle["size"] != [height, width]:
        raise ValueError(f"its size {shown(rle['size'])} is not the image's [{height}, {width}]")
    if isinstance(counts, str):
        counts = _uncompressed(counts)
    whole = isinstance(counts, list) and all(type(n) is int and n >= 0 for n in counts)
    if not whole or sum(counts) != width * height:
        raise ValueError("its run lengths do not add up to the image")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


def _uncompressed(text: str) -> list[int]:
    """Run lengths from COCO's compressed text.

    Each number is a sequence of characters, the lowest bits first. The code of a character minus 48 contains 5 bits of the
    number in two's complement; its bit 5 is set if another character follows. From the fourth number on, a number is the
    difference to the number two places before.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise ValueError(f"its compressed run lengths contain {character!r}")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts
