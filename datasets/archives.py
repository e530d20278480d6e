"""Zip and tar files from outside, unpacked inside one folder only.

Every member is looked at before it is written: absolute names, ``..``, drive letters, links, devices and names that
come twice are refused, whether or not the member is wanted.  Content is checked against the checksums that zip files
bring (CRC-32); a tar file has none, but must be readable to its end mark.
"""

from __future__ import annotations

import errno
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from datasets.errors import DataError

_BLOCK = 1 << 20
_TAR_BLOCK = 512


class ArchiveError(DataError):
    """The content of an archive is at fault: damaged, unsafe, or another file than the published one."""


@dataclass(frozen=True)
class _Member:
    """One entry of an archive, of whatever format."""

    name: str
    kind: str  # file | folder | anything else: what it is
    size: int
    open: Callable[[], BinaryIO]


def unpacked_size(archive: Path, wanted: Collection[str]) -> int:
    """Bytes that ``unpack`` will write.

    Raises:
        ArchiveError: the archive is damaged or unsafe.
    """
    with _clear_errors(archive):
        return sum(member.size for member, _ in _checked_members(archive, wanted) if member.kind == "file")


def unpack(
    archive: Path, folder: Path, wanted: Collection[str], tick: Callable[[int], None] = lambda written: None
) -> None:
    """Write members of an archive below ``folder``, which should be a new one: what an error leaves is incomplete.

    Args:
        archive: a ``.zip`` or an uncompressed ``.tar``.
        folder: where to; files that are there already are written over.
        wanted: files and folders of the archive to unpack.
        tick: told about every written byte.

    Raises:
        ArchiveError: the archive is damaged or unsafe.
        DataError: it does not fit on the disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = unpacked_size(archive, wanted), shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{archive} unpacks to {needed / 1e9:.1f} GB, but {folder} has {free / 1e9:.1f} GB free; make room and "
            "run again"
        )
    with _clear_errors(archive):
        for member, path in _checked_members(archive, wanted):
            if member.kind == "file":
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with member.open() as source, open(target, "wb") as sink:
                    written = 0
                    while block := source.read(_BLOCK):
                        sink.write(block)
                        written += len(block)
                        tick(len(block))
                if written != member.size:
                    raise ArchiveError(f"{archive}: {member.name} is cut off; fetch the archive again")


@contextmanager
def _clear_errors(archive: Path) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError) as error:
        # RuntimeError: an encrypted member, or a compression that Python does not know.
        raise ArchiveError(f"{archive} is damaged ({error}); fetch it again") from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full; make room and run again" if full else str(error)
        raise DataError(f"{archive} cannot be unpacked: {reason}") from error


def _checked_members(archive: Path, wanted: Collection[str]) -> Iterator[tuple[_Member, PurePosixPath]]:
    """Wanted members and their paths; all members are checked."""
    read = {".zip": _zip_members, ".tar": _tar_members}.get(archive.suffix.lower())
    if read is None:
        raise ArchiveError(f"{archive} is neither a .zip nor a .tar file")
    seen: set[PurePosixPath] = set()
    for member in read(archive):
        path = _checked_path(archive, member)
        if member.kind == "file":
            if path in seen:
                raise ArchiveError(f"{archive} is refused: it has two members named {member.name!r}")
            seen.add(path)
        if any(path.is_relative_to(name) for name in wanted):
            yield member, path


def _checked_path(archive: Path, member: _Member) -> PurePosixPath:
    """A member's path below the folder that the archive is unpacked into."""
    name, path = member.name, PurePosixPath(member.name)
    inside = not path.is_absolute() and ".." not in path.parts
    plain = "\\" not in name and "\0" not in name and not re.match(r"[A-Za-z]:", name)
    if not (inside and plain) or (member.kind == "file" and not path.parts):
        raise ArchiveError(
            f"{archive} is refused: its member {name!r} would be written outside of its folder"
        )
    if member.kind not in ("file", "folder"):
        raise ArchiveError(
            f"{archive} is refused: its member {name!r} is {member.kind}, not a file or a folder"
        )
    return path


def _zip_members(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            mode = info.external_attr >> 16
            kind = "folder" if info.is_dir() else "file"
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                kind = "a link or a device"
            # orig_filename: zipfile cuts names at a zero byte, and a cut name is another name.
            yield _Member(info.orig_filename, kind, info.file_size, lambda info=info: file.open(info))


def _tar_members(archive: Path) -> Iterator[_Member]:
    with tarfile.open(archive, "r:") as file:
        for info in file:
            kind = "folder" if info.isdir() else "a link or a device"
            if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
                kind = "file"
            yield _Member(info.name, kind, info.size, lambda info=info: file.extractfile(info))
        # tarfile takes a broken header for the end of the archive; the true end is a block of zeros.
        file.fileobj.seek(file.offset)
        if file.fileobj.read(_TAR_BLOCK) != bytes(_TAR_BLOCK):
            raise tarfile.ReadError(f"it ends or breaks off at byte {file.offset}")
