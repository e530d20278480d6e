"""How the figures came about: protocol, environment, every run."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from afl.reporting.names import percent
from afl.reporting.report.material import Material
from afl.reporting.report.page import Section, facts, note, table
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
    """Protocol and environment, all values where runs differ, then a line for each run."""
    parts = []
    for found in material.tables:
        records = [r for r in found.cells.values() if r is not None and r.status == FINISHED]
        if not records:
            continue
        parts.append(f"<h3>{escape(found.spec.title or found.spec.name)}: protocol</h3>")
        names = dict.fromkeys(name for record in records for name in record.protocol)
        parts.append(facts((name, _values(r.protocol.get(name) for r in records)) for name in names))
        parts.append(f"<h3>{escape(found.spec.title or found.spec.name)}: environment</h3>")
        known = [(name, _values(r.environment.get(name) for r in records)) for name in ENVIRONMENT]
        known.append(("source of the code", _values(r.git.get("source") for r in records)))
        known.append(("commit", _values(_commit(r) for r in records)))
        known.append(("data", _values(r.data_hash for r in records)))
        parts.append(facts((name, value) for name, value in known if value))
        parts.append(
            f"<details><summary>All {len(found.cells)} cells</summary>{_runs(found.cells.values())}</details>"
        )
    parts += [note(escape(text)) for text in material.missing]
    return Section("protocol", "Protocol and environment", "Protocol", "".join(parts))


def _values(values: Iterable) -> str:
    return " / ".join(sorted({str(value) for value in values if value is not None}))


def _commit(record: Record) -> str | None:
    sha = record.git.get("sha")
    return None if not sha else sha[:7] + (" with changes" if record.git.get("dirty") else "")


def _runs(records: Iterable[Record | None]) -> str:
    head = ["run", "AP", "AP_r", "AP_c", "AP_f", "steps", "seconds", "images/s", "memory, MB", "state"]
    rows = []
    for record in records:
        if record is None:
            continue
        metrics = [percent(record.metrics.get(name)) for name in ("AP", "AP_r", "AP_c", "AP_f")]
        numbers = [
            "–" if value is None else f"{value:,.0f}"
            for value in (
                record.steps,
                record.seconds,
                record.images_per_second,
                None if record.peak_memory_bytes is None else record.peak_memory_bytes / 1e6,
            )
        ]
        state = "finished" if record.status == FINISHED else f"failed: {record.error or 'no reason given'}"
        rows.append([escape(record.key), *metrics, *numbers, escape(state)])
    return table(head, rows, text=(9,))
