"""Published data sets, from archives to the layout that the readers expect.

In a data set's folder, beside its data: ``downloads.json`` remembers the checksum of every archive that was used and
how many files came out of it; ``archives/`` holds archives on their way, and what is being unpacked.  A part gets its
name when it is whole, so that a run that was killed leaves nothing half done, and the same command goes on.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from datasets.archives import ArchiveError, unpack, unpacked_size
from datasets.download import Progress, RemoteFile, ask, download, received
from datasets.errors import DataError
from datasets.files import atomic_file
from datasets.releases import Archive, Part

MANIFEST = "downloads.json"
ARCHIVES = "archives"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Sources:
    """Where archives and data come from.

    Attributes:
        mirror: address of a folder that holds all archives under their names, in place of the official sites.
        existing: folder with an unpacked copy, whose parts are linked, or with archives, which are used where they are.
        verify: whether size and checksum must be the published ones; False is for a mirror that packed archives anew.
            What ``downloads.json`` remembers must agree in any case.
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
    """Bring parts into their folders: linked, unpacked, or downloaded and unpacked.

    Args:
        wanted: folders and what belongs there; a folder may come twice.
        sources: where from.
        progress: told about every byte that is received, checked or unpacked.
        say: told what is done, a line at a time.

    Returns:
        Whether there was anything to do.

    Raises:
        DataError: a folder holds an incomplete copy, a download failed or is not the published file, an archive is
            damaged or unsafe, or there is no room.
    """
    if sources.existing is not None and not sources.existing.is_dir():
        raise DataError(f"there is no folder {sources.existing}: correct existing=")
    with contextlib.ExitStack() as stack:
        # Two names of one folder would wait for each other's lock.
        places: dict[Path, _Place] = {}
        for folder, parts in wanted:
            folder = folder.resolve()
            if folder not in places:
                places[folder] = stack.enter_context(_Place.opened(folder))
            missing = [part for part in parts if not _is_complete(folder, part, places[folder].counts)]
            for part in missing:
                _check_places(folder, part)
            places[folder].missing += missing
        if not any(place.missing for place in places.values()):
            return False
        for place in places.values():
            _link_existing(place, sources, say)
        _download_missing(list(places.values()), sources, progress, say)
        for place in places.values():
            for part in place.missing:
                _unpack_part(place, part, sources, progress)
                say(f"unpacked {', '.join(str(place.folder / path) for path in part.outputs.values())}")
            with contextlib.suppress(OSError):
                (place.folder / ARCHIVES).rmdir()
    return True


@dataclass
class _Place:
    """A data set's folder: locked, with its manifest."""

    folder: Path
    checksums: dict[str, str]
    counts: dict[str, int]
    missing: list[Part] = field(default_factory=list)

    @classmethod
    @contextlib.contextmanager
    def opened(cls, folder: Path) -> Iterator[_Place]:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder, os.O_RDONLY)
        except OSError as error:
            raise DataError(
                f"{folder} cannot be made a folder for data: {error.strerror}; set dataset.root"
            ) from error
        try:
            # The system drops this lock with the process, however that ends.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise DataError(f"another process is preparing {folder}; wait for it or stop it") from error
        except OSError:
            pass  # a network file system without locks
        try:
            yield cls(folder, *_read_manifest(folder / MANIFEST))
        finally:
            os.close(lock)

    def remember(self, checksums: Mapping[str, str], counts: Mapping[str, int]) -> None:
        self.checksums.update(checksums)
        self.counts.update(counts)
        with atomic_file(self.folder / MANIFEST) as file:
            os.fchmod(file.fileno(), 0o644)  # as readable as the data, for whoever shares it
            content = {"sha256": self.checksums, "files": self.counts}
            file.write(json.dumps(content, indent=2, sort_keys=True).encode() + b"\n")


def _read_manifest(path: Path) -> tuple[dict[str, str], dict[str, int]]:
    if not path.is_file():
        return {}, {}
    try:
        content = json.loads(path.read_bytes())
        return (
            {str(name): str(value) for name, value in content["sha256"].items()},
            {str(name): int(value) for name, value in content["files"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} cannot be read; delete it, archives are then checked anew") from error


def _is_complete(folder: Path, part: Part, counts: Mapping[str, int]) -> bool:
    """Whether a folder has a part.

    Raises:
        DataError: it has some of it: a copy that was broken off must not pass for the data set.
    """
    there = True
    for path in part.outputs.values():
        place = folder / path
        if place.is_symlink() and not place.exists():
            raise DataError(f"{place} links to {os.readlink(place)}, which does not exist; remove the link")
        if not place.exists() or (place.is_dir() and not any(place.iterdir())):
            there = False
    if there:
        for path, published in part.counts.items():
            expected = counts.get(path, published)
            found = _count_files(folder / path)
            if found < expected:
                raise DataError(
                    f"{folder / path} holds {found:,} files, but {expected:,} belong there: a copy that was broken "
                    "off; move or delete it and run again"
                )
    return there


def _check_places(folder: Path, part: Part) -> None:
    """See to it that what is unpacked inside ``folder`` can be given its place, before anything is fetched.

    Raises:
        DataError: a place is a link, or on another disk, where a folder cannot be moved to.
    """
    for path in part.outputs.values():
        place = folder / path
        if place.is_symlink():
            raise DataError(
                f"{place} links to {os.readlink(place)}, which is empty; remove the link, and to keep the data on another "
                f"disk make {folder} itself a link to it, or set dataset.root"
            )
        there = next(parent for parent in (place, *place.parents) if parent.exists())
        if os.stat(there).st_dev != os.stat(folder).st_dev:
            raise DataError(
                f"{there} is on another disk than {folder}; keep all of it on one: make {folder} itself a link to that "
                "disk, or set dataset.root"
            )


def _count_files(folder: Path) -> int:
    if not folder.is_dir():
        return 0
    with os.scandir(folder) as entries:
        return sum(not entry.name.startswith(".") for entry in entries)


def _link_existing(place: _Place, sources: Sources, say: Callable[[str], None]) -> None:
    """Link the parts that the existing copy has."""
    if sources.existing is None or sources.existing.resolve() == place.folder:
        return
    copy = sources.existing.resolve()
    remembered = _read_manifest(copy / MANIFEST)[1]
    for part in list(place.missing):
        if not _is_complete(copy, part, remembered):
            continue
        for path in part.outputs.values():
            link = place.folder / path
            if link.is_dir():
                link.rmdir()  # only an empty one counts as missing
            if not link.exists():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(copy / path)
                say(f"linked {link} to {copy / path}")
        place.remember({}, {path: remembered[path] for path in part.counts if path in remembered})
        place.missing.remove(part)


def _find_archive(place: _Place, archive: Archive, sources: Sources) -> Path | None:
    """An archive that is here already."""
    folders = [place.folder, sources.existing] if sources.existing else [place.folder]
    candidates = (
        path for folder in folders for path in (folder / ARCHIVES / archive.name, folder / archive.name)
    )
    return next((path for path in candidates if path.is_file()), None)


def _download_missing(
    places: Sequence[_Place], sources: Sources, progress: Progress, say: Callable[[str], None]
) -> None:
    """Bring every archive that is needed and not here into its place, after a look at the room for all of it."""
    remote: dict[Path, RemoteFile] = {}
    needed: dict[int, float] = {}
    for place in places:
        device = os.stat(place.folder).st_dev
        for archive in (archive for part in place.missing for archive in part.archives):
            found = _find_archive(place, archive, sources)
            target = place.folder / ARCHIVES / archive.name
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
    for place in places:
        need, free = needed.pop(os.stat(place.folder).st_dev, 0), shutil.disk_usage(place.folder).free
        if need > free:
            raise DataError(
                f"{need / 1e9:.1f} GB are needed for archives and data, but {place.folder} has {free / 1e9:.1f} GB "
                "free; make room, or set dataset.root to a folder on another disk"
            )
    for target, file in remote.items():
        here = received(target, file)
        say(
            f"downloading {file.url}, {file.size / 1e6:,.1f} MB"
            + (f", {here / 1e6:,.1f} MB here" if here else "")
        )
    download(remote, connections=sources.connections, progress=progress)


def _check_size(where: str, size: int, archive: Archive, sources: Sources) -> None:
    if sources.verify and size != archive.size:
        raise DataError(
            f"{where} has {size:,} bytes, the published {archive.name} has {archive.size:,}: it is another file; get "
            "the published one, or say verify=false if it was packed anew on purpose"
        )


def _unpack_part(place: _Place, part: Part, sources: Sources, progress: Progress) -> None:
    """Verify a part's archives, unpack them together, and give the result its place."""
    own = place.folder / ARCHIVES
    work = own / "unpacking"
    shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
    archives = {archive.name: _find_archive(place, archive, sources) for archive in part.archives}
    checksums = {}
    try:
        for archive in part.archives:
            path = archives[archive.name]
            try:
                checksums[archive.name] = _verified(path, archive, place, sources, progress)
                tick = progress(f"unpack {path.name}", unpacked_size(path, part.outputs), 0)
                unpack(path, work, part.outputs, tick)
            except ArchiveError:
                if path.parent == own:
                    path.unlink()  # the next run must not find it again
                raise
        for inside in part.outputs:
            if not (work / inside).exists():
                raise ArchiveError(
                    f"{', '.join(archives)} came without {inside}: not the archives of this data set"
                )
        # Before anything gets its name: what is there must never lack its counts.
        place.remember(checksums, {path: _count_files(work / _inside(part, path)) for path in part.counts})
        for inside, path in part.outputs.items():
            target = place.folder / path
            if not target.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(work / inside, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for path in archives.values():
        if path.parent == own and not sources.keep_archives:
            path.unlink()


def _inside(part: Part, path: str) -> PurePosixPath:
    """Where the archives have what belongs at ``path``."""
    inside, output = next(
        pair for pair in part.outputs.items() if PurePosixPath(path).is_relative_to(pair[1])
    )
    return inside / PurePosixPath(path).relative_to(output)


def _verified(path: Path, archive: Archive, place: _Place, sources: Sources, progress: Progress) -> str:
    """SHA-256 of an archive.

    Raises:
        ArchiveError: it is not the published one, or not the one that an earlier run used.
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
            f"{path} has SHA-256 {found}, the published {archive.name} has {archive.sha256}: it was damaged on its way "
            "or is another file; fetch it again"
        )
    remembered = place.checksums.get(archive.name)
    if remembered not in (None, found):
        raise ArchiveError(
            f"{path} has SHA-256 {found}, but {place.folder / MANIFEST} remembers {remembered}: the published file "
            "changed or was damaged; fetch it again, or delete that file to accept it"
        )
    return found
