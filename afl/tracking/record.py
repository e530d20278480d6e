"""``record.json``: everything that tables and readers need from a run that has ended."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from afl.tracking.run_key import names_run
from datasets.files import write_json
from datasets.sealed import seal, unseal

SCHEMA = 1
FINISHED, FAILED = "finished", "failed"


# Types of the fields that readers rely on.
KINDS = {
    **dict.fromkeys(("key", "dataset", "detector", "loss"), str),
    "seed": int,
    **dict.fromkeys(("config", "protocol", "metrics", "per_class", "groups"), Mapping),
    **dict.fromkeys(("gradient_dynamics", "environment", "git"), Mapping),
}


class DamagedRecord(ValueError):
    """A file does not contain a record, or its content was changed."""


@dataclass(frozen=True)
class Record:
    """One run.

    Attributes:
        key: name of the run, from its run key.
        status: ``finished`` or ``failed``.
        dataset, detector, loss, seed: names of the run's parts, and its seed.
        config: the whole resolved configuration.
        protocol: description of the run for captions: backbone, image size, schedule ...
        metrics: AP, AP50 ... AR in [0, 1]; None where undefined.
        per_class: AP by class name.
        groups: "r", "c" or "f" by class name.
        gradient_dynamics: ``summarize`` of the curves: gradients by frequency group over the training.
        environment: ``environment()``, and ``initial_weights``, the digest of the weights from which the run started, None if
            they were random. Older records lack the digest.
        git: ``git_state()``.
        data_hash: fingerprint of the data set.
        train_seconds, eval_seconds: wall time, over all attempts of a run that was interrupted; no training if a run only evaluates.
        images_per_second: training throughput; None if a run only evaluates.
        peak_memory_bytes: largest memory of the run on a GPU; on a CPU that of the process, which may have trained other runs before.
        parameters: number of trained parameters.
        steps: optimiser steps taken.
        curves: path of ``metrics.jsonl``, relative to the record.
        error: the reason why a run failed, in one line.
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

    def started_apart(self, other: Record) -> bool:
        """Whether this run and another one started from different weights, as far as both state them."""
        starts = {record.environment.get("initial_weights") for record in (self, other)}
        return len(starts) == 2 and None not in starts

    @property
    def seconds(self) -> float | None:
        """Wall time of training and evaluation together."""
        parts = [part for part in (self.train_seconds, self.eval_seconds) if part is not None]
        return sum(parts) if parts else None


def write_record(path: str | Path, record: Record) -> None:
    """Write atomically, with a checksum that ``read_record`` verifies.

    Raises:
        ValueError: a number is not finite, or a text cannot be written as UTF-8; with the field.
    """
    value = asdict(record)
    for where, problem in unwritable(value):
        raise ValueError(f"the record of {record.key} cannot be written: {where} {problem}")
    write_json(path, seal(value))


def unwritable(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """The parts of a plain value that cannot be written as JSON in UTF-8: their dotted names and problems."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            if isinstance(name, str) and not _is_text(name):
                yield where or "a name", f"has the name {name!a}, which cannot be written as UTF-8"
            yield from unwritable(part, f"{where}.{name}" if where else str(name))
    elif isinstance(value, list | tuple):
        for i, part in enumerate(value):
            yield from unwritable(part, f"{where}[{i}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield where, f"is {value}, which is not finite"
    elif isinstance(value, str) and not _is_text(value):
        yield where, f"is {value!a}, which cannot be written as UTF-8"


def writable(value: Any) -> Any:
    """``value`` with None instead of numbers that are not finite, and with escapes for text that is not valid UTF-8."""
    if isinstance(value, Mapping):
        return {writable(name): writable(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [writable(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    return value


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def read_record(path: str | Path) -> Record:
    """Read and check.

    Raises:
        FileNotFoundError: no such file.
        DamagedRecord: truncated, changed, or not a record.
        ValueError: a record of another schema, or with a field that cannot be.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        data = unseal(data) if isinstance(data, dict) else data
    except (ValueError, RecursionError) as error:  # ValueError: no UTF-8, no JSON, or another checksum
        raise DamagedRecord(f"{path} is damaged ({error}); delete it and run the cell again") from error
    return record_from(data, path)


def record_from(data: Any, path: str | Path) -> Record:
    """A record from parsed JSON.

    Args:
        path: where it comes from, for messages.

    Raises:
        DamagedRecord: not a record.
        ValueError: a record of another schema, or with a field that cannot be.
    """
    if not isinstance(data, dict) or "schema" not in data:
        raise DamagedRecord(f"{path} is not the record of a run; delete it and run the cell again")
    if data["schema"] != SCHEMA:
        raise ValueError(
            f"{path} has schema {data['schema']}, this code reads {SCHEMA}; delete it and run the cell again"
        )
    known = {item.name: item for item in fields(Record)}
    for name in [*data, *known]:
        if name not in data or name not in known:
            word = "lacks" if name in known else "has an unknown field"
            raise ValueError(f"{path} {word} {name!r}; delete it and run the cell again")
    for name, kind in KINDS.items():
        if not isinstance(data[name], kind):
            raise ValueError(
                f"{path}: field {name!r} is a {type(data[name]).__name__}; delete it and run the cell again"
            )
    for name, value in data["metrics"].items():
        if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
            raise ValueError(
                f"{path}: metric {name!r} is {value!r}, not a number; delete it and run the cell again"
            )
    try:
        record = Record(**data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; delete it and run the cell again") from error
    cell = {name: data[name] for name in ("dataset", "detector", "loss", "seed")}
    if not names_run(record.key, **cell):
        content = ", ".join(f"{name} {value}" for name, value in cell.items())
        raise DamagedRecord(
            f"{path} is damaged: its key is {record.key}, its content that of {content}; run the cell again"
        )
    if record.status == FINISHED and not record.metrics:
        raise DamagedRecord(
            f"{path} is damaged: it is of a finished run and has no metrics; run the cell again"
        )
    return record


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A record's nested config by dotted names. Lists stay whole; empty dictionaries are dropped."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
