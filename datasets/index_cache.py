"""A cache of parsed annotation files."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from datasets.defects import Defect
from datasets.errors import DataError, reason
from datasets.files import DamagedFile, arrays_as_bytes, read_checked, write_checked
from datasets.index import AnnotationIndex

# Part of every content hash and therefore of every run key.  A change of the cache's layout changes only CACHE_VERSION.
FORMAT_VERSION = 1
CACHE_VERSION = 3

_ARRAYS = (
    "image_ids", "heights", "widths", "offsets", "boxes", "labels", "crowd", "difficult", "areas",
    "annotation_ids", "extreme_points", "polygon_points", "part_offsets", "annotation_part_offsets",
    "category_ids",
)  # fmt: skip
_OPTIONAL_ARRAYS = ("negative_labels", "negative_offsets", "not_exhaustive_labels", "not_exhaustive_offsets")

_log = logging.getLogger(__name__)


def cached_index(
    build: Callable[[str], AnnotationIndex],
    *,
    reader: str,
    sources: Sequence[Path],
    settings: dict,
    cache: Path | str | None,
) -> AnnotationIndex:
    """Load the index of some annotation files from the cache, or build and cache it.

    Args:
        build: builds the index from its content hash; it must read the hashed files.
        reader: name and version of the reader.
        sources: annotation files; their bytes are the key of the cache.
        settings: everything else that determines the result, as JSON values.
        cache: folder of the cached indices, or None for no cache.

    Raises:
        DataError: a file cannot be read, or changed during the reading, so that the hash does not match the content.
    """
    stamps = []
    digest = hashlib.sha256(json.dumps([FORMAT_VERSION, reader, settings], sort_keys=True).encode())
    for source in sources:
        try:
            with open(source, "rb") as file:
                stamps.append(_stamp(os.fstat(file.fileno())))
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise DataError(f"{source} cannot be read: {reason(error)}; fetch it again") from error
    content_hash = digest.hexdigest()
    if cache is None:
        return _built(build, content_hash, sources, stamps)
    path = Path(cache) / f"index{CACHE_VERSION}-{content_hash[:20]}.npz"
    if path.is_file():
        try:
            index = load_index(path)
            if index.content_hash == content_hash:
                return index
            _log.warning("the annotation cache %s belongs to other files; it is built again", path)
        except DamagedFile as error:
            _log.warning("%s; the annotation cache is built again", error)
    index = _built(build, content_hash, sources, stamps)
    try:
        save_index(path, index)
    except OSError as error:
        _log.warning(
            "the annotation cache %s cannot be written (%s); the next run parses the file again",
            path,
            reason(error),
        )
    return index


def save_index(path: Path, index: AnnotationIndex) -> None:
    """Write an index with its checksum."""
    meta = {
        "image_root": str(index.image_root),
        "sources": index.sources,
        "content_hash": index.content_hash,
        "file_names": list(index.file_names),
        "category_names": list(index.category_names),
        "frequency": None if index.frequency is None else list(index.frequency),
        "defects": {kind: [defect.count, defect.examples] for kind, defect in index.defects.items()},
    }
    arrays = {name: getattr(index, name) for name in _ARRAYS}
    arrays |= {name: getattr(index, name) for name in _OPTIONAL_ARRAYS if getattr(index, name) is not None}
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
    write_checked(path, arrays_as_bytes(arrays))


def load_index(path: Path) -> AnnotationIndex:
    """Read the file that ``save_index`` wrote.

    Raises:
        DamagedFile: the file is damaged or cannot be read.
    """
    try:
        data = read_checked(path)
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read ({reason(error)})") from error
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    meta = json.loads(arrays.pop("meta").tobytes())
    meta["image_root"] = Path(meta["image_root"])
    meta["sources"] = tuple(meta["sources"])
    meta["defects"] = {kind: Defect(count, examples) for kind, (count, examples) in meta["defects"].items()}
    return AnnotationIndex(**meta, **arrays)


def _built(
    build: Callable[[str], AnnotationIndex],
    content_hash: str,
    sources: Sequence[Path],
    stamps: Sequence[tuple[int, ...]],
) -> AnnotationIndex:
    index = build(content_hash)
    for source, stamp in zip(sources, stamps, strict=True):
        if not source.exists() or _stamp(source.stat()) != stamp:
            raise DataError(f"{source} was changed while it was read; run the same command again")
    return index


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    # Without inode numbers, which some network file systems change at every call.
    return status.st_size, status.st_mtime_ns
