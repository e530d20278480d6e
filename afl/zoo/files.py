"""The file of a trained detector: its weights, config, classes and figures in the safetensors format.

A file holds tensors and text, so reading one runs no code. Weights of two or more dimensions are bfloat16. The others (biases,
norms, running statistics, class weights: about a hundredth of the bytes) keep their type.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from afl.config import CONF, did_you_mean
from afl.tracking import RECONSTRUCTION
from afl.training.checkpoint import CheckpointError
from datasets.errors import reason
from datasets.files import write_bytes

FORMAT = "afl-zoo-1"
PREFIX = "zoo:"
SUFFIX = ".safetensors"
ZOO = CONF.parent / "zoo"
NOTE = f"{RECONSTRUCTION}."


@dataclass(frozen=True)
class Entry:
    """The description of a detector in its file.

    Attributes:
        name: ``DETECTOR-DATASET-LOSS``.
        about: config and classes, as :func:`afl.training.data.about` writes them into checkpoints.
        step: optimiser steps of the training.
        metrics: of the stored weights on the whole validation set, in [0, 1].
        run: of the training: key, commit, data_hash, protocol, device, train_seconds, peak_memory_bytes, parameters, metrics.
        kept: ``folder`` of the images that come with the zoo, their number ``images`` and the ``AP`` of the stored weights on
            them (pycocotools); empty if the licence of the data set allows no copies.
        speed: ``milliseconds`` for an image with one thread, ``device``, ``size`` (height and width of the image).
        command: what trains the same run.
        note: what a reader has to know.
    """

    name: str
    about: Mapping[str, Any]
    step: int
    metrics: Mapping[str, float | None]
    run: Mapping[str, Any]
    kept: Mapping[str, Any]
    speed: Mapping[str, Any]
    command: str
    note: str = ""


def names(folder: Path = ZOO) -> list[str]:
    """Names of the detectors in the zoo."""
    return sorted(path.stem for path in folder.glob(f"*{SUFFIX}"))


def zoo_file(name: str) -> Path:
    """The file of ``zoo:NAME``.

    Raises:
        CheckpointError: there is no such detector; with the nearest names.
    """
    known = names()
    if name in known:
        return ZOO / f"{name}{SUFFIX}"
    meant = did_you_mean(name, known)
    raise CheckpointError(f"the zoo has no detector {name!r}.{meant} It has: {', '.join(known) or 'none'}")


def stored(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in the types that a file has."""
    return {
        name: value.to(torch.bfloat16 if value.is_floating_point() and value.dim() > 1 else value.dtype)
        .cpu()
        .contiguous()
        for name, value in weights.items()
    }


def write_entry(path: Path, entry: Entry, weights: Mapping[str, Tensor]) -> None:
    """Write ``weights`` with ``entry`` under a checksum; an interruption leaves the old file or the new one.

    Args:
        weights: of the detector by their names in its ``state_dict``.
    """
    tensors = stored(weights)
    text = json.dumps(asdict(entry), allow_nan=False, ensure_ascii=False)
    sealed = json.dumps({"sha256": digest(tensors, text), "entry": text}, ensure_ascii=False)
    # One key: the library writes several in no fixed order, and equal entries make equal files.
    write_bytes(path, save(tensors, metadata={FORMAT: sealed}))


def read_entry(path: Path) -> tuple[Entry, dict[str, Tensor]]:
    """Entry and weights of a file, the weights of floating point as float32.

    Raises:
        CheckpointError: the file is missing, damaged or of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            sealed = (file.metadata() or {}).get(FORMAT)
            if sealed is None:
                raise CheckpointError(f"{path} was not written by this project (it has no {FORMAT!r})")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as a detector of the zoo: {reason(error)}") from error
    try:
        content = json.loads(sealed)
        text = content["entry"]
        intact = content["sha256"] == digest(tensors, text)
        entry = Entry(**json.loads(text)) if intact else None
    except (TypeError, ValueError, LookupError) as error:
        raise CheckpointError(f"{path}: its description cannot be read ({error})") from error
    if entry is None:
        raise CheckpointError(f"{path} is damaged: its checksum does not match; fetch the file again")
    weights = {
        name: value.float() if value.dtype == torch.bfloat16 else value for name, value in tensors.items()
    }
    return entry, weights


def digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """SHA-256 of the text and of all tensors in the order of their names."""
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        found.update(f"\0{name} {value.dtype} {tuple(value.shape)}\0".encode())
        found.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
