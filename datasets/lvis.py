"""Reader of LVIS annotation files (lvis_v1_*.json).

Gupta et al. 2019, https://www.lvisdataset.org/dataset.  The format is MS COCO's with three differences.  Images are in
COCO's folders; the last two parts of ``coco_url`` are folder and file.  Categories have a ``frequency`` r, c or f.
Annotation is federated: an image lists the classes that were verified to be absent (``neg_category_ids``) and those that were
not annotated completely (``not_exhaustive_category_ids``).  Other data sets in this format have ``file_name`` instead of
``coco_url``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from datasets.coco import read_json_split
from datasets.defects import DefectLog, Policy
from datasets.errors import DataError
from datasets.fields import is_text, left_out, objects_of, optional_id, shown, text
from datasets.index import AnnotationIndex
from datasets.index_builder import IndexBuilder, offsets_of
from datasets.locations import DEFAULT_REMEDY

READER_VERSION = "lvis-2"


def read_lvis(
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
        image_root: folder that contains ``train2017`` and ``val2017``, or to which ``file_name`` is relative.

    The other arguments and the errors are those of ``read_coco``.
    """
    return read_json_split(
        READER_VERSION, annotations, image_root, image_file, policy, cache, remedy, _lvis_fields
    )


def _lvis_fields(
    content: dict, path: Path, builder: IndexBuilder, labels: dict[int, int], log: DefectLog
) -> dict[str, Any]:
    """The fields of an index that exist only for LVIS."""
    negative = _classes_of_images(content, path, "neg_category_ids", builder, labels, log)
    not_exhaustive = _classes_of_images(content, path, "not_exhaustive_category_ids", builder, labels, log)
    return {
        "frequency": _frequencies(content, path, labels),
        "negative_labels": negative[0],
        "negative_offsets": negative[1],
        "not_exhaustive_labels": not_exhaustive[0],
        "not_exhaustive_offsets": not_exhaustive[1],
    }


def image_file(record: dict) -> str:
    """Path of an image below the root: folder and file of its ``coco_url`` if it has one, otherwise its ``file_name``."""
    if is_text(record.get("coco_url")):
        return "/".join(record["coco_url"].split("/")[-2:])
    if is_text(record.get("file_name")) or "coco_url" not in record:
        return text(record, "file_name")
    return text(record, "coco_url")


def _frequencies(content: dict, path: Path, labels: dict[int, int]) -> list[str]:
    """The group r, c or f of each class, in class order."""
    found: dict[int, str] = {}
    for record in objects_of(content, "categories"):
        number = optional_id(record)
        if number is not None and number in labels and record.get("frequency") in ("r", "c", "f"):
            found.setdefault(number, record["frequency"])
    for category_id in labels:
        if category_id not in found:
            raise DataError(
                f"{path}: category {category_id} has no 'frequency' r, c or f; add the field, or read "
                "the file as a COCO-format data set"
            )
    return [found[category_id] for category_id in labels]


def _classes_of_images(
    content: dict, path: Path, field: str, builder: IndexBuilder, labels: dict[int, int], log: DefectLog
) -> tuple[np.ndarray, np.ndarray]:
    """The class numbers in ``field`` of each kept image as a flat array, and the offsets of the images."""
    kept = set(builder.image_ids)
    bad_categories = left_out(content, "categories", labels)
    listed: dict[int, list[int]] = {}
    for record in objects_of(content, "images"):
        image_id = optional_id(record)
        if image_id not in kept or image_id in listed:
            continue
        listed[image_id] = []
        where = f"{path}: image {image_id}"
        ids = [] if record.get(field) is None else record[field]
        if not isinstance(ids, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
            log.report(
                "bad_field", f"{where} has {field} = {shown(ids)}, not a list of category ids", "correct it"
            )
            continue
        for category_id in ids:
            if category_id in labels:
                listed[image_id].append(labels[category_id])
            elif category_id not in bad_categories:
                problem = f"{where} has {category_id} in {field}, which 'categories' does not list"
                log.report("unknown_category", problem, "add the category or correct the id")
    ordered = [listed[image_id] for image_id in builder.image_ids]
    flat = [label for classes in ordered for label in classes]
    return np.asarray(flat, dtype=np.int32), offsets_of([len(classes) for classes in ordered])
