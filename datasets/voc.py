"""Reader of PASCAL VOC annotations: one XML file per image, image lists under ImageSets/Main.

Everingham et al. 2010, http://host.robots.ox.ac.uk/pascal/VOC/.  Box coordinates are whole pixels counted
from 1, both ends included: pixel columns xmin to xmax cover [xmin - 1, xmax] here.  Objects marked
``difficult`` are kept and flagged.  Images and objects have no numbers in this format; they are numbered from
1 in the order they are read.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

from datasets.defects import DefectLog, Policy
from datasets.errors import DataError
from datasets.index import AnnotationIndex, cached_index
from datasets.records import (
    DEFAULT_REMEDY,
    BadRecord,
    IndexBuilder,
    checked_box,
    require_file,
    require_folder,
    shown,
    without_bad_images,
)

READER_VERSION = "voc-1"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip


def read_voc(
    root: Path | str,
    splits: Sequence[str],
    *,
    classes: Sequence[str] | None = None,
    policy: Policy = "error",
    cache: Path | str | None = None,
    remedy: str = DEFAULT_REMEDY,
) -> AnnotationIndex:
    """Read one or more image lists as one split.

    Args:
        root: folder of the data set.
        splits: image lists, each ``NAME`` or ``FOLDER/NAME`` for ImageSets/Main/NAME.txt in root/FOLDER, for
            example ``["VOC2007/trainval", "VOC2012/trainval"]``.
        classes: class names in class order; None takes all names in the folders' annotations, of every split,
            in alphabetical order.
        policy: what to do about bad records: stop at the first, or count them and go on without them.
        cache: folder that keeps parsed indices; None parses every time.
        remedy: how to get the data set, for the message when it is not there.

    Raises:
        DataError: a file is missing or damaged, or (policy ``error``) a record is bad.
    """
    root = Path(root)
    require_folder(root, remedy)
    log = DefectLog(policy)
    lists: list[Path] = []
    images: list[tuple[Path, str]] = []
    for split in splits:
        folder_name, _, name = split.rpartition("/")
        path = require_file(root / folder_name / "ImageSets" / "Main" / f"{name}.txt", remedy)
        lists.append(path)
        images += [(root / folder_name, line.split()[0]) for line in _lines(path)]
    folders = sorted({folder for folder, _ in images})
    if classes is None:
        xml_files = [path for folder in folders for path in sorted((folder / "Annotations").glob("*.xml"))]
    else:
        xml_files = [path for path in (_xml(*image) for image in images) if path.is_file()]

    def build(content_hash: str) -> AnnotationIndex:
        names = (
            sorted({name for path in xml_files for name in _names(path)})
            if classes is None
            else list(classes)
        )
        labels = {name: label for label, name in enumerate(names)}
        builder = IndexBuilder()
        files = {folder: _image_files(folder / "JPEGImages") for folder in folders}
        seen: set[Path] = set()
        for number, (folder, name) in enumerate(images, start=1):
            xml = _xml(folder, name)
            where = str(xml)
            try:
                if xml in seen:
                    raise BadRecord("duplicate_image_id", "is listed twice", "list each image once")
                seen.add(xml)
                annotation = _parse(xml)
                width, height = (_number(annotation, f"size/{side}") for side in ("width", "height"))
                file_name = (
                    (folder / "JPEGImages" / files[folder].get(name, f"{name}.jpg"))
                    .relative_to(root)
                    .as_posix()
                )
                builder.add_image(number, file_name, int(width), int(height))
                for position, element in enumerate(annotation.findall("object"), start=1):
                    _read_object(element, labels, builder, log, f"{where}: object {position}")
            except BadRecord as bad:
                log.report(bad.kind, f"{where} {bad.what}", bad.remedy)
        return builder.build(
            image_root=root,
            sources=lists,
            content_hash=content_hash,
            category_ids=range(1, len(names) + 1),
            category_names=names,
            log=log,
        )

    settings = {
        "splits": list(splits),
        "classes": None if classes is None else list(classes),
        "policy": policy,
        # Image lists give no suffixes: they come from what is in the image folders.
        "images": [sorted(_image_files(folder / "JPEGImages").values()) for folder in folders],
    }
    sources = [*lists, *xml_files]
    index = cached_index(build, reader=READER_VERSION, sources=sources, settings=settings, cache=cache)
    return without_bad_images(index, root, lists, log, remedy)


def _read_object(
    element: ElementTree.Element, labels: dict[str, int], builder: IndexBuilder, log: DefectLog, where: str
) -> None:
    try:
        name = (element.findtext("name") or "").strip()
        if name not in labels:
            what = f"has the class name {shown(name)}, which is not among the classes"
            raise BadRecord("unknown_category", what, "add the class or correct the name")
        xmin, ymin, xmax, ymax = (
            _number(element, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")
        )
        height, width = builder.sizes[-1]
        if xmax <= xmin or ymax <= ymin:
            # Equal ends would be one pixel wide by the rule above, but no annotator meant that.
            what = f"has a box without area, xmin {xmin:g} ymin {ymin:g} xmax {xmax:g} ymax {ymax:g}"
            raise BadRecord("degenerate_box", what, "give it an area")
        box = checked_box((xmin - 1, ymin - 1, xmax, ymax), width, height, log, where)
        difficult = _number(element, "difficult") != 0 if element.find("difficult") is not None else False
        builder.add_annotation(
            len(builder.image_ids) - 1,
            len(builder.labels) + 1,
            labels[name],
            box,
            area=(box[2] - box[0]) * (box[3] - box[1]),
            difficult=difficult,
        )
    except BadRecord as bad:
        log.report(bad.kind, f"{where} {bad.what}", bad.remedy)


def _xml(folder: Path, name: str) -> Path:
    return folder / "Annotations" / f"{name}.xml"


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read as a list of image names ({error}); fetch it again"
        ) from error


def _image_files(folder: Path) -> dict[str, str]:
    """File name of each image, by its name without suffix."""
    if not folder.is_dir():
        return {}
    return {
        path.stem: path.name for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES
    }


def _parse(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(path.read_bytes())
    except FileNotFoundError as error:
        raise BadRecord(
            "missing_annotations", "does not exist", "add it or take the image off the list"
        ) from error
    except (ElementTree.ParseError, ValueError, LookupError, OSError) as error:
        raise BadRecord(
            "broken_xml", f"cannot be read as XML ({error})", "fetch or export it again"
        ) from error


def _names(path: Path) -> list[str]:
    """Class names in one file; none where it is broken, which is reported when the image is read."""
    try:
        return [
            name
            for element in _parse(path).findall("object")
            if (name := (element.findtext("name") or "").strip())
        ]
    except BadRecord:
        return []


def _number(element: ElementTree.Element, field: str) -> float:
    value = element.findtext(field)
    if value is None:
        raise BadRecord("missing_field", f"has no '{field}'", f"add '{field}'")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise BadRecord("bad_field", f"has {field} = {shown(value)}, not a number", f"correct '{field}'")
    return number
