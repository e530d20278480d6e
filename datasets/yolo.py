"""Reader of YOLO text files: one file per image, one object a line, sizes relative to the image.

https://docs.ultralytics.com/datasets/detect/.  A line is ``class cx cy w h``: the number of the class, the centre, width
and height of the box, divided by the width and height of the image.  A line ``class x1 y1 x2 y2 x3 y3 ...`` is a polygon;
its box is the smallest around its points.  The files contain neither image sizes nor ids of images and objects: sizes come
from the headers of the images, and ids count from 1 in the order of the paths.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from pathlib import Path, PurePosixPath

import numpy as np
import yaml

from datasets.classes import given_classes
from datasets.defects import DefectLog, Policy
from datasets.errors import DataError, reason
from datasets.fields import BadRecord, checked_box, number_from, shown
from datasets.files import files_below
from datasets.image_check import without_bad_images, without_form
from datasets.images import (
    IMAGE_SUFFIXES,
    SMALLER_IMAGES,
    TOO_MANY_PIXELS,
    has_too_many_pixels,
    read_header,
)
from datasets.index import AnnotationIndex
from datasets.index_builder import IndexBuilder
from datasets.index_cache import cached_index
from datasets.locations import DEFAULT_REMEDY, require_file, require_folder, require_texts

READER_VERSION = "yolo-1"

NAMES = "data.yaml"
BOX_FIELDS = ("cx", "cy", "w", "h")
# Rounded numbers may be slightly outside [0, 1]; numbers further outside are probably pixels.
TOLERANCE = 0.01
# Annotation tools write the class names to this file in the folder of the text files.
LIST_OF_CLASSES = "classes.txt"


def read_yolo(
    root: Path | str,
    splits: Sequence[str],
    *,
    classes: Sequence[str] | None = None,
    policy: Policy = "error",
    cache: Path | str | None = None,
    remedy: str = DEFAULT_REMEDY,
) -> AnnotationIndex:
    """Read one or more image folders as one split.

    Args:
        root: folder of the data set.
        splits: image folders below the root, for example ``["images/train"]``; subfolders are included.  In the path of
            a text file, ``labels`` replaces the last ``images``: labels/train/NAME.txt belongs to images/train/NAME.jpg.
            An image without a text file has no objects.
        classes: class names in the order of the class numbers; None takes them from ``names`` in root/data.yaml.
        policy, cache, remedy: as in ``read_coco``.

    Raises:
        DataError: a folder or the class names are missing, no object has a known class, or (policy ``error``) a record or
            image is bad.
    """
    root = require_folder(root, remedy)
    places = {split: labels_of(split) for split in require_texts(splits, "the list of splits")}
    for split, labels in places.items():
        require_folder(root / split, remedy)
        require_folder(root / labels, remedy)
    if classes is None:
        names = read_names(require_file(root / NAMES, "write it with a list 'names', or set dataset.classes"))
    else:
        names = given_classes(classes)
    log = DefectLog(policy)
    images = {
        path.relative_to(root).as_posix(): (labels / path.relative_to(root / split))
        .with_suffix(".txt")
        .as_posix()
        for split, labels in places.items()
        for path in files_below(root / split)
        if path.suffix.lower() in IMAGE_SUFFIXES
    }
    headers = [read_header(root / file) for file in images]
    folders = [root / labels for labels in places.values()]
    texts = [
        path.relative_to(root).as_posix()
        for folder in folders
        for path in files_below(folder)
        if path.suffix.lower() == ".txt"
    ]

    def build(content_hash: str) -> AnnotationIndex:
        reader = _Reader(root, set(texts), names, log)
        for (file, text), header in zip(images.items(), headers, strict=True):
            reader.read(file, text, header)
        reader.report_unused()
        reader.refuse_if_all_unknown()
        return reader.builder.build(
            image_root=root,
            sources=folders,
            content_hash=content_hash,
            category_ids=range(1, len(names) + 1),
            category_names=names,
            log=log,
        )

    settings = {
        "classes": names,
        "policy": policy,
        "images": list(zip(images.items(), headers, strict=True)),
        "labels": texts,
    }
    sources = [root / text for text in texts]
    index = cached_index(build, reader=READER_VERSION, sources=sources, settings=settings, cache=cache)
    return without_bad_images(index, root, folders, log, remedy, cache)


def labels_of(split: str) -> PurePosixPath:
    """The folder of the text files of an image folder.

    Raises:
        DataError: no part of the path is ``images``.
    """
    parts = list(PurePosixPath(split).parts)
    if "images" not in parts or ".." in parts or split.startswith("/"):
        raise DataError(
            f"the list of splits has {split!r}, not a folder below dataset.root with a part 'images', such as images/train; "
            "correct it"
        )
    parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return PurePosixPath(*parts)


def read_names(path: Path) -> list[str]:
    """The class names in a YAML file: its list ``names``, or its mapping ``names`` from the numbers 0, 1, 2 ... to names.

    Raises:
        DataError: the file cannot be read, or ``names`` is missing or has another form, or the labels have key points.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as YAML ({reason(error)}); correct it") from error
    if isinstance(content, dict) and "kpt_shape" in content:
        raise DataError(
            f"{path} has kpt_shape, but labels with key points cannot be read; export the boxes or the polygons"
        )
    found = content.get("names") if isinstance(content, dict) else None
    if isinstance(found, dict):
        if any(type(number) is not int for number in found) or set(found) != set(range(len(found))):
            raise DataError(
                f"{path}: names has the numbers {shown(list(found))}; number the classes 0, 1, 2 ... without gaps"
            )
        found = [found[number] for number in range(len(found))]
    if not isinstance(found, list):
        raise DataError(f"{path} has no list 'names'; add the class names, or set dataset.classes")
    if "nc" in content and content["nc"] != len(found):
        raise DataError(f"{path} has nc = {shown(content['nc'])} but {len(found)} names; correct one of them")
    return given_classes(found, f"{path}: names")


class _Reader:
    """Adds images and the lines of their text files to an index."""

    def __init__(self, root: Path, texts: Set[str], names: Sequence[str], log: DefectLog) -> None:
        self.builder = IndexBuilder()
        self.root, self.texts, self.names, self.log = root, texts, names, log
        self.image_of: dict[str, str] = {}
        self.unknown: set[int] = set()

    def read(self, file: str, text: str, header: tuple[int, int, int] | None) -> None:
        """Add an image.

        Args:
            file: its path below the root.
            text: path of its text file below the root; the file need not exist.
            header: width, height and EXIF orientation; None if the image is damaged.
        """
        where = f"image {self.root / file}"
        try:
            if text in self.image_of:
                problem = f"shares the text file {text} with {self.image_of[text]}"
                raise BadRecord("ambiguous_image", problem, "remove or rename one of the two images")
            self.image_of[text] = file
            if header is None and has_too_many_pixels(self.root / file):
                raise BadRecord("broken_image", TOO_MANY_PIXELS, SMALLER_IMAGES)
            if header is None:
                raise BadRecord(
                    "broken_image", "is damaged and cannot be decoded", "fetch the image again or remove it"
                )
            width, height, orientation = header
            if orientation in range(2, 9):
                problem = f"has EXIF orientation {orientation}, so its boxes may belong to the rotated image"
                raise BadRecord("rotated_image", problem, "store the image without EXIF rotation")
            lines = _lines(self.root / text) if text in self.texts else []
            self.builder.add_image(len(self.builder.image_ids) + 1, file, width, height)
            for number, line in enumerate(lines, start=1):
                self._read_line(line, f"{self.root / text}: line {number}")
        except BadRecord as bad:
            self.log.report(bad.kind, f"{where} {bad.problem}", bad.remedy)

    def report_unused(self) -> None:
        """Report text files without an image."""
        expected = {without_form(text): text for text in self.image_of if text not in self.texts}
        for text in sorted(self.texts):
            if text not in self.image_of and PurePosixPath(text).name != LIST_OF_CLASSES:
                problem, remedy = (
                    f"{self.root / text} belongs to no image of the split",
                    "add the image or remove the file",
                )
                if other := expected.get(without_form(text)):
                    problem, remedy = f"{problem}, but {ascii(other)} would", "rename it"
                self.log.report("unknown_image", problem, remedy)

    def refuse_if_all_unknown(self) -> None:
        if self.unknown and not self.builder.labels:
            raise DataError(
                f"no object in the text files of {self.root} has a known class: they have the class numbers "
                f"{shown(sorted(self.unknown))}, but only {self._range()} have names; name all classes in data.yaml or in "
                "dataset.classes"
            )

    def _range(self) -> str:
        return "0" if len(self.names) == 1 else f"0 to {len(self.names) - 1}"

    def _read_line(self, line: str, where: str) -> None:
        words = line.split()
        if not words:
            return
        try:
            if len(words) != 5 and (len(words) < 7 or len(words) % 2 == 0):
                problem = f"has {len(words)} fields, neither 'class cx cy w h' nor a class and the points of a polygon"
                raise BadRecord("bad_record", problem, "correct the line")
            label = self._label(words[0])
            height, width = self.builder.sizes[-1]
            polygons = []
            if len(words) == 5:
                cx, cy, w, h = (_part(word, name) for word, name in zip(words[1:], BOX_FIELDS, strict=True))
                corners = (
                    (cx - w / 2) * width,
                    (cy - h / 2) * height,
                    (cx + w / 2) * width,
                    (cy + h / 2) * height,
                )
            else:
                fields = [f"{axis}{point}" for point in range(1, len(words) // 2 + 1) for axis in "xy"]
                parts = [_part(word, name) for word, name in zip(words[1:], fields, strict=True)]
                points = np.asarray(parts).reshape(-1, 2) * (width, height)
                corners = *points.min(axis=0).tolist(), *points.max(axis=0).tolist()
                polygons = [points]
            box = checked_box(corners, width, height, self.log, where)
            self.builder.add_annotation(
                len(self.builder.image_ids) - 1,
                len(self.builder.labels) + 1,
                label,
                box,
                area=(box[2] - box[0]) * (box[3] - box[1]),
                polygons=polygons,
            )
        except BadRecord as bad:
            self.log.report(bad.kind, f"{where} {bad.problem}", bad.remedy)

    def _label(self, word: str) -> int:
        number = number_from(word, "class")
        if not number.is_integer():
            raise BadRecord(
                "bad_field", f"has class = {shown(word)}, not a whole number", "correct the class"
            )
        if not 0 <= number < len(self.names):
            self.unknown.add(int(number))
            problem = f"has class = {shown(word)}, but the classes are {self._range()}"
            raise BadRecord("unknown_category", problem, "name the class in data.yaml or in dataset.classes")
        return int(number)


def _part(word: str, name: str) -> float:
    number = number_from(word, name)
    if not -TOLERANCE <= number <= 1 + TOLERANCE:
        problem = f"has {name} = {shown(word)}, not a part of the image between 0 and 1"
        raise BadRecord("bad_field", problem, f"divide {name} by the width or height of the image")
    return number


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problem = f"has the text file {path}, which cannot be read ({reason(error)})"
        raise BadRecord("broken_text", problem, "export it again as UTF-8") from error
