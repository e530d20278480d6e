"""``record.json``: everything that is to be known of a run once it is over; W&B only mirrors it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from datasets.files import write_json

SCHEMA = 1
FINISHED, FAILED = "finished", "failed"


class DamagedRecord(ValueError):
    """A file that holds no record at all, whatever it was."""


@dataclass(frozen=True)
class Record:
    """One run.

    Attributes:
        key: name of the run, from its run key.
        status: ``finished`` or ``failed``.
        dataset, detector, loss, seed: the cell.
        config: the whole resolved configuration.
        protocol: what a caption must say beside the cell, in words: backbone, image size, schedule ...
        metrics: AP, AP50 ... AR in [0, 1]; None where undefined.
        per_class: AP by class name.
        groups: "r", "c" or "f" by class name.
        gradient_dynamics: ``summarize`` of the curves: gradients by frequency group over the training.
        environment: ``environment()``.
        git: ``git_state()``.
        data_hash: fingerprint of the data set.
        train_seconds, eval_seconds: wall time, over all attempts of a run that was interrupted.
        images_per_second: training throughput.
        peak_memory_bytes: largest memory of the process, or of the GPU where one was used.
        parameters: number of trained parameters.
        steps: optimiser steps taken.
        curves: path of ``metrics.jsonl``, relative to the record.
        error: what stopped a failed run, in one line.
        schema: version of this layout.
    """

    key: str
    status: str
    dataset: str
    detector: str
    loss: str
    seed: int
    config: dict[str, Any]
    protocol: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float | None] = field(default_factory=dict)
    per_class: dict[str, float | None] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    gradient_dynamics: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    git: dict[str, Any] = field(default_factory=dict)
    data_hash: str | None = None
    train_seconds: float | None = None
    eval_seconds: float | None = None
    images_per_second: float | None = None
    peak_memory_bytes: int | None = None
    parameters: int | None = None
    steps: int | None = None
    curves: str | None = None
    error: str | None = None
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.status not in (FINISHED, FAILED):
            raise ValueError(f"a record is {FINISHED} or {FAILED}, not {self.status!r}")

    @property
    def seconds(self) -> float | None:
        """Wall time of training and evaluation together."""
        parts = [part for part in (self.train_seconds, self.eval_seconds) if part is not None]
        return sum(parts) if parts else None


def write_record(path: str | Path, record: Record) -> None:
    """Write atomically.

    Raises:
        ValueError: a number is not finite.
    """
    try:
        write_json(path, asdict(record))
    except ValueError as error:
        raise ValueError(f"the record of {record.key} holds a number that is not finite ({error})") from error


def read_record(path: str | Path) -> Record:
    """Read and check.

    Raises:
        FileNotFoundError: no such file.
        DamagedRecord: truncated, or anything else than a record.
        ValueError: a record of another schema, or with a field that cannot be.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DamagedRecord(f"{path} is damaged ({error}); delete it and run the cell again") from error
    return record_from(data, path)


def record_from(data: Any, path: str | Path) -> Record:
    """A record from what JSON made of it.

    Args:
        path: where it comes from, for messages.

    Raises:
        DamagedRecord: anything else than a record.
        ValueError: a record of another schema, or with a field that cannot be.
    """
    if not isinstance(data, dict) or "schema" not in data:
        raise DamagedRecord(f"{path} is not the record of a run; delete it and run the cell again")
    if data["schema"] != SCHEMA:
        raise ValueError(f"{path} has schema {data['schema']}, this code reads {SCHEMA}; run the cell again")
    known = {item.name: item for item in fields(Record)}
    for name in [*data, *known]:
        if name not in data or name not in known:
            word = "lacks" if name in known else "has an unknown field"
            raise ValueError(f"{path} {word} {name!r}; delete it and run the cell again")
    for name, kind in (
        ("key", str),
        ("dataset", str),
        ("detector", str),
        ("loss", str),
        ("seed", int),
        ("config", Mapping),
        ("protocol", Mapping),
        ("metrics", Mapping),
        ("per_class", Mapping),
        ("groups", Mapping),
        ("gradient_dynamics", Mapping),
        ("environment", Mapping),
        ("git", Mapping),
    ):
        if not isinstance(data[name], kind):
            raise ValueError(f"{path}: field {name!r} is a {type(data[name]).__name__}; run the cell again")
    for name, value in data["metrics"].items():
        if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
            raise ValueError(f"{path}: metric {name!r} is {value!r}, not a number; run the cell again")
    try:
        return Record(**data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; run the cell again") from error
