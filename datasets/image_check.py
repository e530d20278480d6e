"""Check the images of a split before training.

Each image is decoded once.  The result is cached with the file's size and modification time, so that later runs decode only
changed files.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from datasets.defects import Defect, DefectLog, warn_of_defects
from datasets.errors import explained, printable, reason
from datasets.files import DamagedFile, read_checked, write_checked
from datasets.images import ImageError, read_header, read_image
from datasets.index import AnnotationIndex

MANY_IMAGES = 2000  # from this number on, a message announces the check

_log = logging.getLogger(__name__)


def without_bad_images(
    index: AnnotationIndex,
    image_root: Path,
    sources: Sequence[Path],
    log: DefectLog,
    remedy: str,
    cache: Path | str | None,
) -> AnnotationIndex:
    """The index with current paths and without images that are missing, damaged or of the wrong size.

    Args:
        index: an index from the reader or its cache; a cached one may have older paths.
        image_root: folder to which ``index.file_names`` are relative.
        sources: annotation files.
        log: receives every image that cannot be used.
        remedy: how to get missing images.
        cache: folder for the result of the check; None checks every time.

    Raises:
        DataError: an image cannot be used, under the policy ``error``.
    """
    index = _with_paths(index, image_root, sources)
    kept = np.ones(len(index), dtype=bool)
    for i, kind, problem, own_remedy in _problems(index, cache):
        kept[i] = False
        log.report(kind, problem, own_remedy or remedy)
    defects = {**index.defects, **log.defects}
    warn_of_defects(", ".join(index.sources), defects)
    return replace(index if kept.all() else index.select(np.flatnonzero(kept)), defects=defects)


def _problems(index: AnnotationIndex, cache: Path | str | None) -> list[tuple[int, str, str, str]]:
    """Number, kind, message and remedy of each unusable image, in the order of the images; the remedy is empty if the file is
    missing."""
    stamps = [_stamp(index.image_path(i)) for i in range(len(index))]
    if cache is None:
        return _check(index, [i for i, stamp in enumerate(stamps) if stamp], stamps)
    place = hashlib.sha256(
        f"{index.content_hash} {os.path.realpath(index.image_root)}".encode("utf-8", "surrogatepass")
    )
    path = Path(cache) / f"images-{place.hexdigest()[:20]}.json"
    with _locked(path):
        good = _known_good(path)
        unknown = [
            i
            for i, stamp in enumerate(stamps)
            if stamp and good.get(index.file_names[i]) != _key(index, i, stamp)
        ]
        problems = _check(index, unknown, stamps)
        bad = {i for i, *_ in problems}
        state = {
            index.file_names[i]: _key(index, i, stamp)
            for i, stamp in enumerate(stamps)
            if stamp is not None and i not in bad
        }
        if state != good:
            try:
                write_checked(path, json.dumps(state).encode())
            except OSError as error:
                _log.warning(
                    "the result of the image check cannot be saved in %s (%s); the next run checks the images again",
                    path,
                    reason(error),
                )
    return problems


def _check(
    index: AnnotationIndex, numbers: Sequence[int], stamps: Sequence[str | None]
) -> list[tuple[int, str, str, str]]:
    if len(numbers) >= MANY_IMAGES:
        _log.info("checking %d images of %s, once", len(numbers), ", ".join(index.sources))
    others = OtherNames(index.image_root)
    found = []
    for i in (i for i, stamp in enumerate(stamps) if stamp is None):
        problem, remedy = f"image {index.image_path(i)} (id {index.image_ids[i]}) does not exist", ""
        if other := others.of(index.file_names[i]):
            problem, remedy = f"{problem}, but {ascii(other)} does", "write this name in the annotations"
        found.append((i, "missing_image", problem, remedy))

    def check(i: int) -> tuple[ImageError | None, bool]:
        """The reason why an image cannot be used, and whether its header asks viewers to rotate it."""
        try:
            read_image(index, i)
        except ImageError as error:
            return error, False
        header = read_header(index.image_path(i))
        return None, header is not None and header[2] in range(2, 9)

    turned = []
    # OpenCV decodes without holding the interpreter lock.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for i, (error, rotated) in zip(numbers, pool.map(check, numbers), strict=True):
            if error is not None:
                found.append((i, error.kind, error.problem, error.remedy))
            if rotated:
                turned.append(index.image_path(i))
    if turned:
        _log.warning(
            "%d images have an EXIF rotation, such as %s. Their boxes are taken to belong to the stored pixels, as in MS COCO. If they "
            "were drawn on the rotated picture, store the images without EXIF rotation.",
            len(turned), printable(str(turned[0])),
        )  # fmt: skip
    return sorted(found)


class OtherNames:
    """Finds the files that annotations probably mean by a missing name: another case, Unicode form or slash."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.listed: dict[Path, dict[str, str]] = {}

    def of(self, name: str) -> str | None:
        """The path of an existing file below the root, or None."""
        path = self.root / name.replace("\\", "/")
        if path.parent not in self.listed:
            try:
                names = os.listdir(path.parent)
            except (OSError, ValueError):
                names = []
            self.listed[path.parent] = {without_form(one): one for one in names}
        found = self.listed[path.parent].get(without_form(path.name))
        return None if found is None else str(path.with_name(found).relative_to(self.root))


def without_form(name: str) -> str:
    """A name without the differences of case and Unicode form."""
    return unicodedata.normalize("NFC", name).casefold()


def _known_good(path: Path) -> dict[str, str]:
    try:
        return json.loads(read_checked(path))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (DamagedFile, OSError) as error:
        _log.warning("%s; the images are checked again", explained(error))
        return {}


def _key(index: AnnotationIndex, i: int, stamp: str) -> str:
    return f"{stamp} {index.widths[i]}x{index.heights[i]}"


def _stamp(path: Path) -> str | None:
    """Size and modification time of a file; None if it does not exist."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return f"{status.st_size} {status.st_mtime_ns}"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time check the images; the others wait and then read its result."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:  # without a writable cache, each process checks all images
        yield
        return
    try:
        with suppress(OSError):  # some file systems have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _with_paths(index: AnnotationIndex, image_root: Path, sources: Sequence[Path]) -> AnnotationIndex:
    """The index with current paths, also in the examples of its defects."""
    places = {
        **dict(zip(index.sources, map(str, sources), strict=True)),
        str(index.image_root): str(image_root),
    }

    def moved(example: str) -> str:
        old = next((place for place in places if example.startswith(place)), "")
        return places.get(old, "") + example[len(old) :]

    return replace(
        index,
        image_root=image_root,
        sources=tuple(str(source) for source in sources),
        defects={
            kind: Defect(defect.count, [moved(example) for example in defect.examples])
            for kind, defect in index.defects.items()
        },
    )
