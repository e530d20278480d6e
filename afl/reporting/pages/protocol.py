"""The origin of the figures: protocol, environment, and every run."""

from __future__ import annotations

from collections.abc import Iterable

from afl.reporting.names import METRICS, percent
from afl.reporting.pages.material import Material
from afl.reporting.pages.page import Section
from afl.tracking import FINISHED, Record

ENVIRONMENT = (
    "device",
    "threads",
    "gpu",
    "python",
    "torch",
    "torchvision",
    "numpy",
    "pycocotools",
    "lvis",
    "platform",
)


def protocol_section(material: Material) -> Section:
    """Protocol and environment, with all values if runs differ, then a line for each run."""
    tables = []
    for found in material.tables:
        records = [r for r in found.cells.values() if r is not None and r.status == FINISHED]
        if not records:
            continue
        names = dict.fromkeys(name for record in records for name in record.protocol)
        environment = [(name, _values(r.environment.get(name) for r in records)) for name in ENVIRONMENT]
        environment += [
            ("source of the code", _values(r.git.get("source") for r in records)),
            ("commit", _values(_commit(r) for r in records)),
            ("data", _values(r.data_hash for r in records)),
        ]
        tables.append({
            "title": found.spec.title or found.spec.name,
            "protocol": [(name, _values(r.protocol.get(name) for r in records)) for name in names],
            "environment": [(name, value) for name, value in environment if value],
            "cells": len(found.cells),
            "head": ["run", *METRICS, "steps", "seconds", "images/s", "memory, MB", "state"],
            "runs": [_run(record) for record in found.cells.values() if record is not None],
        })  # fmt: skip
    content = {"tables": tables, "missing": material.missing}
    return Section("protocol", "Protocol and environment", "Protocol", "protocol.html.j2", content)


def _values(values: Iterable) -> str:
    return " / ".join(sorted({str(value) for value in values if value is not None}))


def _commit(record: Record) -> str | None:
    sha = record.git.get("sha")
    return None if not sha else sha[:7] + (" with changes" if record.git.get("dirty") else "")


def _run(record: Record) -> list[str]:
    memory = None if record.peak_memory_bytes is None else record.peak_memory_bytes / 1e6
    numbers = (record.steps, record.seconds, record.images_per_second, memory)
    state = "finished" if record.status == FINISHED else f"failed: {record.error or 'no reason given'}"
    return [
        record.key,
        *(percent(record.metrics.get(name)) for name in METRICS),
        *("–" if value is None else f"{value:,.0f}" for value in numbers),
        state,
    ]
