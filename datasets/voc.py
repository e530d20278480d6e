"""Reader of PASCAL VOC annotations: one XML file per image, image lists under ImageSets/Main.

Everingham et al. 2010, https://thor.robots.ox.ac.uk/pascal/VOC/.  Box coordinates are whole pixels counted from 1, both ends
included: pixel columns xmin to xmax cover [xmin - 1, xmax] here.  Objects marked ``difficult`` are kept and flagged.  The
format has no ids of images and objects; the reader numbers them from 1 in the order of the lists.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from datasets.classes import all_unknown, given_classes
from datasets.defects import DefectLog, Policy
from datasets.errors import DataError, reason
from datasets.fields import BadRecord, checked_box, inner_path, number_from, shown
from datasets.files import files_below
from datasets.image_check import OtherNames, without_bad_images
from datasets.images import IMAGE_SUFFIXES
from datasets.index import AnnotationIndex
from datasets.index_builder import IndexBuilder
from datasets.index_cache import cached_index
from datasets.locations import DEFAULT_REMEDY, require_file, require_folder, require_texts

READER_VERSION = "voc-1"


class _Listed(NamedTuple):
    """An image of a list: its data set folder, and its path below Annotations and JPEGImages without suffix."""

    folder: Path
    name: str

    @property
    def xml(self) -> Path:
        return self.folder / "Annotations" / f"{self.name}.xml"


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
        policy, cache, remedy: as in ``read_coco``.

    Raises:
        DataError: a file is missing or damaged, no object has a known class, or (policy ``error``) a record or image is
            bad.
    """
    root = require_folder(root, remedy)
    splits = require_texts(splits, "the list of splits")
    classes = None if classes is None else given_classes(classes)
    log = DefectLog(policy)
    lists: list[Path] = []
    images: list[_Listed] = []
    for split in splits:
        folder_name, _, name = split.rpartition("/")
        path = require_file(root / folder_name / "ImageSets" / "Main" / f"{name}.txt", remedy)
        lists.append(path)
        images += [_listed(root / folder_name, line) for line in _lines(path)]
    folders = sorted({image.folder for image in images})
    if classes is None:
        places = [folder / "Annotations" for folder in folders]
        found = [path for place in places if place.is_dir() for path in files_below(place)]
        xml_files = [path for path in found if path.suffix == ".xml"]
    else:
        xml_files = [image.xml for image in images if image.xml.is_file()]
    files = {
        folder: _image_files(folder, [image.name for image in images if image.folder == folder])
        for folder in folders
    }

    def build(content_hash: str) -> AnnotationIndex:
        names = (
            classes if classes is not None else sorted({name for path in xml_files for name in _names(path)})
        )
        reader = _Reader(root, names, files, xml_files, log)
        for number, image in enumerate(images, start=1):
            reader.read(number, image)
        if not names:
            raise DataError(_why_no_classes(lists, images, folders, log))
        return reader.builder.build(
            image_root=root,
            sources=lists,
            content_hash=content_hash,
            category_ids=range(1, len(names) + 1),
            category_names=names,
            log=log,
        )

    settings = {
        "splits": splits,
        "classes": classes,
        "policy": policy,
        # Image lists contain no suffixes; the files in the image folders determine them.
        "annotations": [path.relative_to(root).as_posix() for path in xml_files],
        "images": [sorted(name for found in files[folder].values() for name in found) for folder in folders],
    }
    sources = [*lists, *xml_files]
    index = cached_index(build, reader=READER_VERSION, sources=sources, settings=settings, cache=cache)
    return without_bad_images(index, root, lists, log, remedy, cache)


def _why_no_classes(
    lists: Sequence[Path], images: Sequence[_Listed], folders: Sequence[Path], log: DefectLog
) -> str:
    """Why no annotation of the listed images names a class."""
    named = ", ".join(map(str, lists))
    if not images:
        return f"{named} has no image names; write one in each line"
    for folder in folders:
        if not (folder / "Annotations").is_dir():
            return f"{folder} has no folder Annotations; put the XML files of {named} there"
    examples = [example for defect in log.defects.values() for example in defect.examples]
    first = f"; the first bad record: {examples[0]}" if examples else ""
    return f"no annotation of {named} has an object with a class name{first}; add the objects, or set dataset.classes"


class _Reader:
    """Adds the images of a list to an index."""

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        files: dict[Path, dict[str, list[str]]],
        xml_files: Sequence[Path],
        log: DefectLog,
    ) -> None:
        self.builder = IndexBuilder()
        self.root, self.files, self.xml_files, self.log = root, files, xml_files, log
        self.labels = {name: label for label, name in enumerate(names)}
        self.seen: set[Path] = set()
        self.any_known = False
        self.others = OtherNames(root)

    def read(self, number: int, image: _Listed) -> None:
        where = str(image.xml)
        try:
            inner_path(image.name)
            if image.xml in self.seen:
                raise BadRecord("duplicate_image_id", "is listed twice", "list each image once")
            self.seen.add(image.xml)
            try:
                annotation = _parse(image.xml)
            except FileNotFoundError as error:
                raise self._missing(image) from error
            width, height = (_number(annotation, f"size/{side}") for side in ("width", "height"))
            self.builder.add_image(number, self._file_name(image, annotation), int(width), int(height))
            for position, element in enumerate(annotation.findall("object"), start=1):
                self._read_object(element, f"{where}: object {position}")
        except BadRecord as bad:
            self.log.report(bad.kind, f"{where} {bad.problem}", bad.remedy)

    def _missing(self, image: _Listed) -> BadRecord:
        if other := self.others.of(image.xml.relative_to(self.root).as_posix()):
            problem, remedy = f"does not exist, but {ascii(other)} does", "rename it, or correct the list"
        else:
            problem, remedy = "does not exist", "add it, or remove the image from the list"
        return BadRecord("missing_annotations", problem, remedy)

    def _file_name(self, image: _Listed, annotation: ElementTree.Element) -> str:
        """Path of an image below the root: the file with the name of the XML file, otherwise its ``filename``."""
        folder = image.folder / "JPEGImages"
        candidates = self.files[image.folder].get(image.name, [])
        named = PurePosixPath((annotation.findtext("filename") or "").strip().replace("\\", "/")).name
        given = (PurePosixPath(image.name).parent / named).as_posix()
        if len(candidates) > 1:
            candidates = [name for name in candidates if name == given] or candidates
        if len(candidates) > 1:
            problem = f"has more than one image: {', '.join(candidates)}"
            raise BadRecord("ambiguous_image", problem, "remove all but one, or name one in <filename>")
        if not candidates and named and (folder / given).is_file():
            candidates = [given]
        return (
            (folder / (candidates[0] if candidates else f"{image.name}.jpg"))
            .relative_to(self.root)
            .as_posix()
        )

    def _read_object(self, element: ElementTree.Element, where: str) -> None:
        try:
            name = _class_of(element)
            if name not in self.labels:
                self._refuse_if_all_unknown()
                problem = f"has the class name {shown(name)}, which is not among the classes"
                raise BadRecord("unknown_category", problem, "add the class or correct the name")
            xmin, ymin, xmax, ymax = (
                _number(element, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")
            )
            height, width = self.builder.sizes[-1]
            if xmax <= xmin or ymax <= ymin:
                # Equal ends would mean a width of one pixel, but in practice they are errors.
                problem = f"has a box without area, xmin {xmin:g} ymin {ymin:g} xmax {xmax:g} ymax {ymax:g}"
                raise BadRecord("degenerate_box", problem, "give it an area")
            box = checked_box((xmin - 1, ymin - 1, xmax, ymax), width, height, self.log, where)
            difficult = _number(element, "difficult") != 0 if element.find("difficult") is not None else False
            self.builder.add_annotation(
                len(self.builder.image_ids) - 1,
                len(self.builder.labels) + 1,
                self.labels[name],
                box,
                area=(box[2] - box[0]) * (box[3] - box[1]),
                difficult=difficult,
            )
        except BadRecord as bad:
            self.log.report(bad.kind, f"{where} {bad.problem}", bad.remedy)

    def _refuse_if_all_unknown(self) -> None:
        """At the first unknown class, check that any object of the split has a known one."""
        if self.any_known:
            return
        found = {name for path in self.xml_files for name in _names(path)}
        self.any_known = not found.isdisjoint(self.labels)
        if not self.any_known:
            raise all_unknown(
                ", ".join(sorted({str(path.parent) for path in self.xml_files})), list(self.labels), found
            )


def _listed(folder: Path, line: str) -> _Listed:
    """The image of a line of a list.

    A line is a name, which may contain spaces.  In class lists a last word -1, 0 or 1 follows.  Some tools append the suffix
    of the image or of the XML file.
    """
    whole = _Listed(folder, line.strip())
    words = whole.name.rsplit(maxsplit=1)
    names = [words[0]] if len(words) == 2 and words[1] in ("-1", "0", "1") else []
    names += [
        str(path.with_suffix(""))
        for path in map(PurePosixPath, [whole.name, *names])
        if path.suffix.lower() in (*IMAGE_SUFFIXES, ".xml")
    ]
    candidates = [whole, *(_Listed(folder, name) for name in names)]
    # If no candidate has annotations, the error names the most likely one.
    return next(
        (image for image in candidates if _is_file(image.xml)), candidates[min(1, len(candidates) - 1)]
    )


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read as a list of image names ({reason(error)}); fetch it again or save it as UTF-8"
        ) from error


def _image_files(folder: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """Image files below JPEGImages in all folders of the ``names``, by their path without suffix."""
    found: dict[str, list[str]] = {}
    for inner in sorted({str(PurePosixPath(name).parent) for name in names if ".." not in name.split("/")}):
        place = folder / "JPEGImages" / inner
        for path in sorted(place.iterdir()) if place.is_dir() else []:
            if path.suffix.lower() in IMAGE_SUFFIXES:
                name = PurePosixPath(inner) / path.name
                found.setdefault(str(name.with_suffix("")), []).append(str(name))
    return found


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def _parse(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(path.read_bytes())
    except FileNotFoundError:
        raise
    except (ElementTree.ParseError, ValueError, LookupError, OSError) as error:
        raise BadRecord(
            "broken_xml", f"cannot be read as XML ({reason(error)})", "fetch or export it again"
        ) from error


def _names(path: Path) -> list[str]:
    """Class names in one file; none if it is damaged, which is reported when the image is read."""
    try:
        return [name for element in _parse(path).findall("object") if (name := _class_of(element))]
    except (BadRecord, FileNotFoundError):
        return []


def _class_of(element: ElementTree.Element) -> str:
    return (element.findtext("name") or "").strip()


def _number(element: ElementTree.Element, field: str) -> float:
    return number_from(element.findtext(field), field)
