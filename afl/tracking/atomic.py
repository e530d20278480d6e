"""Files that are either whole or absent: a reader, or a run after a crash, never meets half of one."""

from __future__ import annotations

import io
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write under a temporary name in the same folder, flush to disk, rename.

    The folder is made if need be. On any error (a full disk, an interrupt) the old file stays as it was and
    the temporary one goes.

    Raises:
        OSError: with the path, where the system names none.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, f"could not be written ({error.strerror})", str(path)) from error
        raise
    sync_folder(path.parent)


def write_text(path: str | Path, text: str) -> None:
    """``write_bytes`` of UTF-8 text."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """``write_bytes`` of JSON, indented, keys in their order.

    Raises:
        ValueError: a number is not finite (JSON has no word for it).
        TypeError: a value has no JSON form.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """``write_bytes`` of an ``.npz`` file."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_bytes(path, buffer.getvalue())


def remove_leftovers(folder: str | Path) -> None:
    """Remove the temporary files that writers killed in mid-write have left in a folder nobody else is writing to."""
    for path in Path(folder).glob(".*.tmp"):
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the new name itself survive a power cut, where the file system lets folders be flushed."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
