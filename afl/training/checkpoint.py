"""Checkpoints: written whole or not at all, checked when read, the one before kept.

A checkpoint is a plain ``torch.save`` file (a zip archive whose members carry checksums), so ``torch.load`` reads it
anywhere; the weights stand under ``model``.
"""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from afl.tracking import sync_folder

LAST, PREVIOUS, DAMAGED = "last.pt", "previous.pt", "damaged.pt"
FORMAT = "afl-checkpoint-1"


# What zipfile and ``torch.load`` raise at files that were damaged anywhere, or are something else.
UNREADABLE = (
    AssertionError, AttributeError, EOFError, ImportError, LookupError, MemoryError, OSError, OverflowError, RuntimeError,
    TypeError, ValueError, pickle.PickleError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


class CheckpointError(RuntimeError):
    """A file that is not a checkpoint of this project, or is damaged."""


def reason(error: BaseException) -> str:
    """Why a file could not be read, in one line."""
    if isinstance(error, pickle.UnpicklingError):
        # torch advises to read it as code.
        return "it holds something else than tensors and plain values, or is damaged"
    return " ".join(str(error).split())[:200] or type(error).__name__


def save_checkpoint(folder: Path, state: dict[str, Any]) -> Path:
    """Write ``state`` to ``folder/last.pt``; what was there becomes ``previous.pt``.

    The bytes go to a temporary name first, are flushed to the disk and then renamed: a kill or a full disk at any moment
    leaves the last good checkpoint in place.

    Raises:
        OSError: the disk is full or the folder cannot be written; the temporary file is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    last, temporary = folder / LAST, folder / f".{LAST}.tmp"
    try:
        with open(temporary, "wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise OSError(f"could not write the checkpoint {last}: {error}; the last good one is kept") from error
    if last.exists():
        os.replace(last, folder / PREVIOUS)
    os.replace(temporary, last)
    sync_folder(folder)
    return last


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read one checkpoint to the CPU, verifying the checksum of every member first.

    Raises:
        CheckpointError: the file is missing, truncated, damaged, or was not written by :func:`save_checkpoint`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise CheckpointError(f"{path} is damaged: the checksum of {damaged} does not fit")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except CheckpointError:
        raise
    except UNREADABLE as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {reason(error)}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} was not written by this project (no format {FORMAT!r} in it)")
    return state


def evaluated_weights(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a checkpoint that its run was evaluated with: the moving average where it kept one."""
    if state["average"] is None:
        return state["model"]
    return {k.removeprefix("module."): v for k, v in state["average"].items() if k.startswith("module.")}


def load_latest(folder: Path, run_digest: str) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest good checkpoint of this very run.

    Args:
        run_digest: digest of the run's config; a checkpoint of another config is not continued.

    Returns:
        The state (None where nothing was saved yet), and a line about every file that was passed over for it.

    Raises:
        CheckpointError: there are files, and none of them can be used.
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
    """Rename a ``last.pt`` that was passed over, lest the next one to be saved push it over the good ``previous.pt``."""
    return (folder / LAST).rename(folder / DAMAGED)
