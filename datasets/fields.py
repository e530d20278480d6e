"""Checks of fields in annotation files: JSON values, numbers in texts, boxes."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from datasets.defects import DefectLog
from datasets.errors import DataError, reason

# Annotation tools round: a box may exceed its image by this many pixels.
OVERHANG = 1.0
# A thinner box counts as empty; float32 coordinates in the largest image are 0.008 pixels apart.
THINNEST_BOX = 0.01
# Larger coordinates or areas are not pixels.  Infinity and NaN fail the same comparison.
LARGEST_NUMBER = 1e12


class BadRecord(Exception):
    """A record cannot be used. Readers catch this error and report it under ``kind``."""

    def __init__(self, kind: str, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.kind, self.problem, self.remedy = kind, problem, remedy


def integer(record: Mapping, name: str) -> int:
    """An integer field; whole floats are accepted, booleans and texts are not."""
    if name not in record:
        raise BadRecord("missing_field", f"has no '{name}'", f"add '{name}'")
    value = record[name]
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if not whole or isinstance(value, bool) or abs(value) >= 2**63:
        raise BadRecord("bad_field", f"has {name} = {shown(value)}, not a whole number", f"correct '{name}'")
    return int(value)


def optional_id(record: Mapping) -> int | None:
    """The record's id, or None if it is missing or bad."""
    try:
        return integer(record, "id")
    except BadRecord:
        return None


def objects_of(content: Mapping, name: str) -> list[dict]:
    """The records of a section that are JSON objects."""
    return [record for record in content[name] if isinstance(record, dict)]


def left_out(content: Mapping, name: str, kept: Collection[int]) -> set[int]:
    """Ids of the records of a section that the reader left out and reported."""
    ids = (optional_id(record) for record in objects_of(content, name))
    return {number for number in ids if number is not None}.difference(kept)


def numbers(record: Mapping, name: str, count: int) -> list[float]:
    """A list of ``count`` finite numbers."""
    if name not in record:
        raise BadRecord("missing_field", f"has no '{name}'", f"add '{name}'")
    value = record[name]
    if not isinstance(value, list) or len(value) != count or not all(map(is_finite_number, value)):
        raise BadRecord(
            "bad_field", f"has {name} = {shown(value)}, not {count} finite numbers", f"correct '{name}'"
        )
    return value


def text(record: Mapping, name: str) -> str:
    """A non-empty text field."""
    if name not in record:
        raise BadRecord("missing_field", f"has no '{name}'", f"add '{name}'")
    value = record[name]
    if not is_text(value):
        raise BadRecord("bad_field", f"has {name} = {shown(value)}, not a text", f"correct '{name}'")
    return value


def class_name(name: str) -> str:
    """The name of a class, which files and terminals can show.

    Raises:
        BadRecord: it contains control characters, or lone surrogates, which UTF-8 cannot encode.
    """
    if any(
        character < " " or "\x7f" <= character <= "\x9f" or "\ud800" <= character <= "\udfff"
        for character in name
    ):
        problem = f"has the class name {ascii(name)}, which contains characters that cannot be written"
        raise BadRecord("bad_class_name", problem, "rename the class")
    return name


def number_from(value: str | None, name: str) -> float:
    """The finite number in the text of a field; ``value`` is None if the field is missing."""
    if value is None:
        raise BadRecord("missing_field", f"has no '{name}'", f"add '{name}'")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise BadRecord("bad_field", f"has {name} = {shown(value)}, not a number", f"correct '{name}'")
    return number


def inner_path(name: str) -> str:
    """A path relative to an image folder.

    Raises:
        BadRecord: it leaves the folder.
    """
    if name.startswith("/") or ".." in name.split("/"):
        raise BadRecord("bad_file_name", f"is outside the image folder: {shown(name)}", "correct the path")
    return name


def is_text(value: object) -> bool:
    """Whether a JSON value is a non-empty text."""
    return isinstance(value, str) and bool(value)


def is_finite_number(value: object) -> bool:
    """Whether a JSON value is a number that can be a coordinate or an area."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_NUMBER


def shown(value: object) -> str:
    """The representation of a value in messages, at most 80 characters long."""
    full = repr(value)
    return full if len(full) <= 80 else full[:77] + "..."


def checked_box(xyxy: Sequence[float], width: int, height: int, log: DefectLog, where: str) -> list[float]:
    """Check that a box has an area inside its image.

    A box that exceeds the image by more than a pixel is reported and, under ``skip``, clipped to the image.

    Raises:
        BadRecord: the box has no area, or no part of it is inside the image.
    """
    x1, y1, x2, y2 = xyxy
    if not (x2 - x1 >= THINNEST_BOX and y2 - y1 >= THINNEST_BOX):
        raise BadRecord(
            "degenerate_box", f"has a box without area, xyxy {_box_text(xyxy)}", "give it an area"
        )
    inner_width, inner_height = min(x2, width) - max(x1, 0), min(y2, height) - max(y1, 0)
    if not (inner_width >= THINNEST_BOX and inner_height >= THINNEST_BOX):
        problem = f"has a box outside its image of {width} x {height} pixels, xyxy {_box_text(xyxy)}"
        raise BadRecord("box_outside_image", problem, "correct the box or the image size")
    if min(x1, y1) < -OVERHANG or x2 > width + OVERHANG or y2 > height + OVERHANG:
        problem = (
            f"has a box that sticks out of its image of {width} x {height} pixels, xyxy {_box_text(xyxy)}"
        )
        log.report("box_sticks_out", f"{where} {problem}", "cut it at the border")
        return [max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))]
    return [x1, y1, x2, y2]


def _box_text(xyxy: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in xyxy) + ")"


def load_json(path: Path) -> dict:
    """A JSON file whose top level is an object.

    Raises:
        DataError: the file cannot be read, is not JSON, or does not contain an object.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise DataError(
            f"{path} cannot be read as JSON ({reason(error)}); fetch or export the file again"
        ) from error
    if not isinstance(content, dict):
        raise DataError(
            f"{path} contains a {type(content).__name__}, not an object with images, annotations, categories"
        )
    return content


def records(content: dict, name: str, path: Path, log: DefectLog) -> list[tuple[int, dict]]:
    """Numbered records of one list of a JSON file; entries that are not objects are reported."""
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
