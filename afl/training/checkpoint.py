"""Checkpoints: writing is atomic, reading verifies checksums, and the previous checkpoint is kept.

A checkpoint is a plain ``torch.save`` file (a zip archive whose members carry checksums), so ``torch.load`` can read it
anywhere. Its weights are under ``model``.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import torch

from afl.tracking import sync_folder
from datasets import errors

LAST, PREVIOUS, DAMAGED = "last.pt", "previous.pt", "damaged.pt"
FORMAT = "afl-checkpoint-1"

# Errors that zipfile and ``torch.load`` raise for damaged files and for files of another kind.
UNREADABLE = (
    AssertionError, AttributeError, EOFError, ImportError, LookupError, MemoryError, OSError, OverflowError, RuntimeError,
    TypeError, ValueError, pickle.PickleError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


class CheckpointError(RuntimeError):
    """A file is not a checkpoint of this project, is damaged, or does not fit the run."""


def reason(error: BaseException) -> str:
    """Why a file could not be read, in one line."""
    if isinstance(error, pickle.UnpicklingError):
        # torch's own message advises loading the file as code.
        return "it contains objects other than tensors and plain values, or is damaged"
    return errors.reason(error)[:200] or type(error).__name__


class _Target:
    """A file for ``torch.save`` that remembers the first write error; torch's own error hides the reason."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._file.flush()


def save_checkpoint(folder: Path, state: dict[str, Any]) -> Path:
    """Write ``state`` to ``folder/last.pt``; the existing ``last.pt`` becomes ``previous.pt``.

    The file is written under a temporary name, flushed to the disk and then renamed. The last good checkpoint therefore
    survives a killed process or a full disk.

    Raises:
        OSError: the disk is full or the folder cannot be written; the temporary file is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    last, temporary = folder / LAST, folder / f".{LAST}.tmp"
    target: _Target | None = None
    try:
        with open(temporary, "wb") as file:
            target = _Target(file)
            torch.save({"format": FORMAT, **state}, target)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        cause = target.error if target is not None and target.error is not None else error
        kept = last.exists() or (folder / PREVIOUS).exists()
        left = "the last good one is kept" if kept else "there is no earlier one, so the run starts again"
        raise OSError(f"could not write the checkpoint {last}: {reason(cause)}; {left}") from error
    if last.exists():
        os.replace(last, folder / PREVIOUS)
    os.replace(temporary, last)
    sync_folder(folder)
    return last


def read_archive(path: Path) -> Any:
    """Read a ``torch.save`` file of tensors and plain values to the CPU, after verifying the checksum of every member.

    Raises:
        CheckpointError: a checksum does not match.
        Exception: one of ``UNREADABLE``; the file cannot be read.
    """
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: the checksum of {damaged} does not match")
    return torch.load(path, map_location="cpu", weights_only=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read one checkpoint to the CPU.

    Raises:
        CheckpointError: the file is missing, truncated, damaged, or was not written by :func:`save_checkpoint`.
    """
    try:
        state = read_archive(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except CheckpointError:
        raise
    except UNREADABLE as error:
        previous = path.with_name(PREVIOUS)
        remedy = f"; {previous} is the one before it" if path.name == LAST and previous.exists() else ""
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {reason(error)}{remedy}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} was not written by this project (it has no format {FORMAT!r})")
    return state


def load_latest(folder: Path, run_digest: str) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest good checkpoint of a run.

    Args:
        run_digest: digest of the run's config; a checkpoint of another config is not continued.

    Returns:
        The state (None if nothing was saved yet), and one line for each newer file that cannot be used.

    Raises:
        CheckpointError: checkpoints exist, but none of them can be used.
    """
    passed_over = []
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            state = load_checkpoint(path)
        except CheckpointError as error:
            passed_over.append(str(error))
            continue
        if state.get("run") == run_digest:
            return state, passed_over
        passed_over.append(f"{path} belongs to another run ({state.get('run')}, this is {run_digest})")
    if passed_over:
        raise CheckpointError(
            f"no checkpoint in {folder} can be used: {'; '.join(passed_over)}. Put a good copy of one there as {LAST}, "
            "or delete that folder to train from the beginning"
        )
    return None, []


def set_aside(folder: Path) -> Path:
    """Rename a ``last.pt`` that cannot be used; otherwise the next save would move it over the good ``previous.pt``."""
    return (folder / LAST).rename(folder / DAMAGED)
