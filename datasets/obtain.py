"""Bring published data sets into the layout that the readers expect.

Archives are downloaded into ``archives/`` in the data set's folder and unpacked there.  A part is moved to its final path
when it is complete, so that a killed run leaves no incomplete part, and the same command continues.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from datasets.archives import ArchiveError, unpack, unpacked_size
from datasets.data_folder import MANIFEST, DataFolder, count_files
from datasets.download import Progress, download, received
from datasets.errors import DataError
from datasets.http_range import RemoteFile, ask
from datasets.releases import Archive, Part

ARCHIVES = "archives"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Sources:
    """Sources of archives and data.

    Attributes:
        mirror: address of a folder that holds all archives under their names, instead of the official sites.
        existing: folder with an unpacked copy, whose parts are linked, or with archives, which are used in place.
        verify: whether size and checksum must be the published ones; False is for a mirror with repacked archives.
            The checksums in ``downloads.json`` must agree in any case.
        keep_archives: whether downloaded archives stay after unpacking.
        connections: simultaneous requests.
    """

    mirror: str | None = None
    existing: Path | None = None
    verify: bool = True
    keep_archives: bool = False
    connections: int = 4

    def url(self, archive: Archive) -> str:
        return archive.url if self.mirror is None else f"{self.mirror.rstrip('/')}/{archive.name}"


def obtain(
    wanted: Sequence[tuple[Path, Sequence[Part]]],
    sources: Sources,
    *,
    progress: Progress,
    say: Callable[[str], None],
) -> bool:
    """Bring parts into their folders: link them, unpack them, or download and unpack them.

    Args:
        wanted: folders and the parts that belong there; a folder may occur twice.
        sources: sources of the parts.
        progress: receives the number of bytes that are downloaded, verified or unpacked.
        say: receives a line about each action.

    Returns:
        Whether a part was missing.

    Raises:
        DataError: a folder contains an incomplete copy, a download failed or is not the published file, an archive is
            damaged or unsafe, or the disk is too small.
    """
    if sources.existing is not None and not sources.existing.is_dir():
        raise DataError(f"there is no folder {sources.existing}: correct existing=")
    with contextlib.ExitStack() as stack:
        folders: dict[Path, DataFolder] = {}
        for path, parts in wanted:
            path = path.resolve()  # a folder under two names must be locked once
            if path not in folders:
                folders[path] = stack.enter_context(DataFolder.locked(path))
            missing = [part for part in parts if not folders[path].has(part)]
            for part in missing:
                folders[path].check_destinations(part)
            folders[path].missing += missing
        if not any(folder.missing for folder in folders.values()):
            return False
        for folder in folders.values():
            _link_existing(folder, sources, say)
        _download_missing(list(folders.values()), sources, progress, say)
        for folder in folders.values():
            for part in folder.missing:
                _unpack_part(folder, part, sources, progress)
                say(f"unpacked {', '.join(str(folder.path / path) for path in part.outputs.values())}")
            with contextlib.suppress(OSError):
                (folder.path / ARCHIVES).rmdir()
    return True


def _link_existing(folder: DataFolder, sources: Sources, say: Callable[[str], None]) -> None:
    """Link the parts that the existing copy contains."""
    if sources.existing is None or sources.existing.resolve() == folder.path:
        return
    copy = DataFolder.read(sources.existing.resolve())
    for part in [part for part in folder.missing if copy.has(part)]:
        for path in part.outputs.values():
            link = folder.path / path
            if link.is_dir():
                link.rmdir()  # only an empty folder counts as missing
            if not link.exists():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(copy.path / path)
                say(f"linked {link} to {copy.path / path}")
        folder.remember({}, {path: copy.counts[path] for path in part.counts if path in copy.counts})
        folder.missing.remove(part)


def _find_archive(folder: DataFolder, archive: Archive, sources: Sources) -> Path | None:
    """The path of an archive on this machine, or None."""
    places = [folder.path, sources.existing] if sources.existing else [folder.path]
    candidates = (
        path for place in places for path in (place / ARCHIVES / archive.name, place / archive.name)
    )
    return next((path for path in candidates if path.is_file()), None)


def _download_missing(
    folders: Sequence[DataFolder], sources: Sources, progress: Progress, say: Callable[[str], None]
) -> None:
    """Download all missing archives, after a check that the disks have room for archives and data.

    Raises:
        DataError: a disk is too small, an archive has another size than the published one, or a download failed.
    """
    remote: dict[Path, RemoteFile] = {}
    needed: dict[int, float] = {}  # bytes by disk
    for folder in folders:
        device = os.stat(folder.path).st_dev
        for archive in (archive for part in folder.missing for archive in part.archives):
            found = _find_archive(folder, archive, sources)
            target = folder.path / ARCHIVES / archive.name
            folder.archives[archive.name] = found or target
            if found is None:
                remote[target] = ask(sources.url(archive), sha256=archive.sha256 if sources.verify else None)
                size = remote[target].size
                _check_size(sources.url(archive), size, archive, sources)
                needed[device] = needed.get(device, 0) + size - received(target, remote[target])
            else:
                size = found.stat().st_size
                _check_size(str(found), size, archive, sources)
                say(f"using {found}")
            needed[device] = needed.get(device, 0) + archive.growth * size
    for folder in folders:
        need, free = needed.pop(os.stat(folder.path).st_dev, 0), shutil.disk_usage(folder.path).free
        if need > free:
            raise DataError(
                f"{need / 1e9:.1f} GB are needed for archives and data, but {folder.path} has {free / 1e9:.1f} GB "
                "free; make room, or set dataset.root to a folder on another disk"
            )
    for target, file in remote.items():
        done = received(target, file)
        resumed = f", of which {done / 1e6:,.1f} MB are on disk" if done else ""
        say(f"downloading {file.url}, {file.size / 1e6:,.1f} MB{resumed}")
    download(remote, connections=sources.connections, progress=progress)


def _check_size(where: str, size: int, archive: Archive, sources: Sources) -> None:
    if sources.verify and size != archive.size:
        raise DataError(
            f"{where} has {size:,} bytes, but the published {archive.name} has {archive.size:,}: it is another file; get "
            "the published one, or set verify=false for a mirror with repacked archives"
        )


def _unpack_part(folder: DataFolder, part: Part, sources: Sources, progress: Progress) -> None:
    """Verify the archives of a part, unpack them into one temporary folder, and move the result to its destination."""
    own = folder.path / ARCHIVES
    work = own / "unpacking"
    shutil.rmtree(work, ignore_errors=True)  # of a killed run
    checksums = {}
    try:
        for archive in part.archives:
            path = folder.archives[archive.name]
            try:
                checksums[archive.name] = _verified(path, archive, folder, sources, progress)
                tick = progress(f"unpack {path.name}", unpacked_size(path, part.outputs), 0)
                unpack(path, work, part.outputs, tick)
            except ArchiveError:
                if path.parent == own:
                    path.unlink()  # so that the next run downloads it again
                raise
        for inside in part.outputs:
            if not (work / inside).exists():
                names = ", ".join(archive.name for archive in part.archives)
                raise ArchiveError(f"{names} came without {inside}: not the archives of this data set")
        # The counts are written first: a folder at its destination must never lack them.
        folder.remember(checksums, {path: count_files(work / _inside(part, path)) for path in part.counts})
        for inside, output in part.outputs.items():
            target = folder.path / output
            if not target.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(work / inside, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for archive in part.archives:
        if folder.archives[archive.name].parent == own and not sources.keep_archives:
            folder.archives[archive.name].unlink()


def _inside(part: Part, path: str) -> PurePosixPath:
    """The path inside the archives of the file or folder that belongs at ``path``."""
    inside, output = next(
        pair for pair in part.outputs.items() if PurePosixPath(path).is_relative_to(pair[1])
    )
    return inside / PurePosixPath(path).relative_to(output)


def _verified(path: Path, archive: Archive, folder: DataFolder, sources: Sources, progress: Progress) -> str:
    """SHA-256 of an archive.

    Raises:
        ArchiveError: it is not the published archive, or not the one that an earlier run used.
    """
    digest = hashlib.sha256()
    tick = progress(f"check {path.name}", path.stat().st_size, 0)
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            tick(len(block))
    found = digest.hexdigest()
    if sources.verify and archive.sha256 not in (None, found):
        raise ArchiveError(
            f"{path} has SHA-256 {found}, the published {archive.name} has {archive.sha256}: it was damaged in transfer "
            "or is another file; fetch it again"
        )
    manifest = folder.path / MANIFEST
    if folder.checksums.get(archive.name, found) != found:
        raise ArchiveError(
            f"{path} has SHA-256 {found}, but {manifest} has {folder.checksums[archive.name]}: the published file changed "
            f"or was damaged; fetch it again, or delete {manifest} to accept it"
        )
    return found
