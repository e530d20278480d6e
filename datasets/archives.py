"""Unpack zip and tar files from outside inside one folder.

``zipfile`` and ``tarfile`` write the files. Before they do, every member is checked, wanted or not: an archive with an
absolute name, ``..``, a drive letter, a link, a device or the same name twice is refused. Zip files carry checksums
(CRC-32), which ``zipfile`` verifies. Tar files carry none, but must be readable to their end mark.
"""

from __future__ import annotations

import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from datasets.errors import DataError, explained


class ArchiveError(DataError):
    """An archive is damaged, unsafe, or not the published file."""


def unpacked_size(archive: Path, wanted: Collection[str]) -> int:
    """Number of bytes that ``unpack`` writes.

    Raises:
        ArchiveError: the archive is damaged or unsafe.
    """
    with _opened(archive) as file:
        return sum(member.size for member in _wanted_members(file, archive, wanted))


def unpack(
    archive: Path, folder: Path, wanted: Collection[str], tick: Callable[[int], None] = lambda written: None
) -> None:
    """Write members of an archive below ``folder``. After an error, the content of ``folder`` is incomplete.

    Args:
        archive: a ``.zip`` or an uncompressed ``.tar``.
        folder: the destination; existing files are overwritten.
        wanted: files and folders of the archive to unpack.
        tick: receives the size of every written file.

    Raises:
        ArchiveError: the archive is damaged or unsafe.
        DataError: the disk is too small.
    """
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = unpacked_size(archive, wanted), shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{archive} unpacks to {needed / 1e9:.1f} GB, but {folder} has {free / 1e9:.1f} GB free; make room and "
            "run again"
        )
    with _opened(archive) as file:
        for member in _wanted_members(file, archive, wanted):
            if isinstance(file, zipfile.ZipFile):
                written = Path(file.extract(member.name, folder))
                # zipfile does not notice a member that is shorter than its header says.
                if member.isfile() and written.stat().st_size != member.size:
                    raise ArchiveError(f"{archive}: {member.name} is cut off; fetch the archive again")
            else:
                # Python before 3.11.4 has no filters; the checks of this file do not rely on them.
                file.extraction_filter = getattr(tarfile, "data_filter", None)
                file.extract(member, folder, set_attrs=False)
            tick(member.size)


@contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile | tarfile.TarFile]:
    """Open an archive by its suffix, and turn the libraries' errors into this package's.

    Raises:
        ArchiveError: the archive is damaged, or of another format.
        DataError: the system does not let it be unpacked.
    """
    suffix = archive.suffix.lower()
    if suffix not in (".zip", ".tar"):
        raise ArchiveError(f"{archive} is neither a .zip nor a .tar file")
    try:
        with zipfile.ZipFile(archive) if suffix == ".zip" else tarfile.open(archive, "r:") as file:
            yield file
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError) as error:
        # RuntimeError: an encrypted member, or a compression that Python does not support.
        raise ArchiveError(f"{archive} is damaged ({error}); fetch it again") from error
    except OSError as error:
        raise DataError(f"{archive} cannot be unpacked: {explained(error)}") from error


def _wanted_members(
    file: zipfile.ZipFile | tarfile.TarFile, archive: Path, wanted: Collection[str]
) -> Iterator[tarfile.TarInfo]:
    """Check all members and yield the wanted ones.

    Raises:
        ArchiveError: a member is unsafe.
    """
    seen: set[PurePosixPath] = set()
    for member in _zip_members(file) if isinstance(file, zipfile.ZipFile) else _tar_members(file):
        path = PurePosixPath(member.name)
        inside = not path.is_absolute() and ".." not in path.parts
        plain = not re.match(r"[A-Za-z]:|.*[\\\0]", member.name)
        if not (inside and plain) or (member.isfile() and not path.parts):
            raise ArchiveError(
                f"{archive} is refused: its member {member.name!r} would be written outside of its folder"
            )
        if not (member.isfile() or member.isdir()):
            raise ArchiveError(
                f"{archive} is refused: its member {member.name!r} is a link or a device, not a file or a folder"
            )
        if member.isfile():
            if path in seen:
                raise ArchiveError(f"{archive} is refused: it has two members named {member.name!r}")
            seen.add(path)
        if any(path.is_relative_to(name) for name in wanted):
            yield member


def _zip_members(file: zipfile.ZipFile) -> Iterator[tarfile.TarInfo]:
    """The members of a zip file, described as those of a tar file."""
    for info in file.infolist():
        # zipfile cuts `filename` at a zero byte; `orig_filename` is the whole name.
        member = tarfile.TarInfo(info.orig_filename)
        mode = stat.S_IFMT(info.external_attr >> 16)
        if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
            member.type = tarfile.SYMTYPE
        elif info.is_dir():
            member.type = tarfile.DIRTYPE
        else:
            member.size = info.file_size
        yield member


def _tar_members(file: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members of a tar file.

    Raises:
        tarfile.ReadError: a header is broken, or the end is missing.
    """
    yield from file
    # tarfile takes a broken header for the end of the archive. The true end is a block of zeros.
    assert file.fileobj is not None
    file.fileobj.seek(file.offset)
    if file.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"it ends or breaks off at byte {file.offset}")
