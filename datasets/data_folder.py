"""The folder of a published data set: its lock, its manifest, and which parts are complete.

``downloads.json`` in the folder contains the checksum of every archive that was used, and the number of files in the
folders that were unpacked from it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from datasets.errors import DataError, reason
from datasets.files import atomic_file, try_lock
from datasets.releases import Part

MANIFEST = "downloads.json"


@dataclass
class DataFolder:
    """A folder and the content of its manifest.

    Attributes:
        path: the folder.
        checksums: SHA-256 of every archive that was used, by the archive's name.
        counts: number of files that folders had when they were unpacked, by path below ``path``.
        missing: the parts that ``obtain`` still has to bring.
        archives: paths of the archives of these parts, by name.
    """

    path: Path
    checksums: dict[str, str]
    counts: dict[str, int]
    missing: list[Part] = field(default_factory=list)
    archives: dict[str, Path] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> DataFolder:
        """A folder as its manifest describes it.

        Raises:
            DataError: the manifest is damaged.
        """
        manifest = path / MANIFEST
        if not manifest.is_file():
            return cls(path, {}, {})
        try:
            content = json.loads(manifest.read_bytes())
            checksums = {str(name): str(value) for name, value in content["sha256"].items()}
            counts = {str(name): int(value) for name, value in content["files"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{manifest} cannot be read; delete it to check the archives again") from error
        return cls(path, checksums, counts)

    @classmethod
    @contextlib.contextmanager
    def locked(cls, path: Path) -> Iterator[DataFolder]:
        """Create a folder if necessary, and lock it against other processes.

        Raises:
            DataError: it cannot be created, another process holds the lock, or the manifest is damaged.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DataError(
                f"{path} cannot be used as a folder for data: {reason(error)}; set dataset.root"
            ) from error
        try:
            free = True
            with contextlib.suppress(OSError):  # some network file systems have no locks
                free = try_lock(handle)
            if not free:
                raise DataError(f"another process is preparing {path}; wait for it or stop it")
            yield cls.read(path)
        finally:
            os.close(handle)

    def remember(self, checksums: Mapping[str, str], counts: Mapping[str, int]) -> None:
        """Add entries to the manifest."""
        self.checksums.update(checksums)
        self.counts.update(counts)
        with atomic_file(self.path / MANIFEST) as file:
            content = {"sha256": self.checksums, "files": self.counts}
            file.write(json.dumps(content, indent=2, sort_keys=True).encode() + b"\n")

    def has(self, part: Part) -> bool:
        """Whether the folder contains a part completely.

        Raises:
            DataError: it contains an incomplete copy, or a link to a file or folder that does not exist.
        """
        for output in part.outputs.values():
            path = self.path / output
            if path.is_symlink() and not path.exists():
                raise DataError(f"{path} links to {os.readlink(path)}, which does not exist; remove the link")
        paths = [self.path / output for output in part.outputs.values()]
        if not all(path.is_file() or (path.is_dir() and any(path.iterdir())) for path in paths):
            return False
        for name, published in part.counts.items():
            expected, found = self.counts.get(name, published), count_files(self.path / name)
            if found < expected:
                raise DataError(
                    f"{self.path / name} contains {found:,} of {expected:,} files: the copy is incomplete; move or delete "
                    "it and run again"
                )
        return True

    def check_destinations(self, part: Part) -> None:
        """Check that unpacked files can be moved to their destinations.

        Raises:
            DataError: a destination is a link, or on another disk, to which a folder cannot be moved.
        """
        for output in part.outputs.values():
            path = self.path / output
            if path.is_symlink():
                raise DataError(
                    f"{path} links to {os.readlink(path)}, which is empty; remove the link, and to keep the data on "
                    f"another disk make {self.path} itself a link to it, or set dataset.root"
                )
            existing = next(parent for parent in (path, *path.parents) if parent.exists())
            if os.stat(existing).st_dev != os.stat(self.path).st_dev:
                raise DataError(
                    f"{existing} is on another disk than {self.path}; keep all of it on one: make {self.path} itself a "
                    "link to that disk, or set dataset.root"
                )


def count_files(folder: Path) -> int:
    """Number of entries of a folder without hidden ones; 0 if there is no such folder."""
    if not folder.is_dir():
        return 0
    with os.scandir(folder) as entries:
        return sum(not entry.name.startswith(".") for entry in entries)
