"""The report: everything that is known of some tables' runs, in one HTML page without references to anything outside it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from afl.reporting.report.frequency import frequency_section
from afl.reporting.report.material import Gallery, Material
from afl.reporting.report.page import document
from afl.reporting.report.pictures import pictures_section
from afl.reporting.report.protocol import protocol_section
from afl.reporting.report.results import results_section
from afl.reporting.report.training import curves_section, dynamics_section
from afl.reporting.table import Table
from afl.tracking import FINISHED

__all__ = ["Gallery", "Material", "report"]


def report(material: Material) -> str:
    """The page as HTML.

    Raises:
        ValueError: no table has a finished cell.
    """
    finished = [
        r for t in material.tables for r in t.cells.values() if r is not None and r.status == FINISHED
    ]
    if not finished:
        raise ValueError("there is no finished run to report on")
    sections = [
        *(results_section(table) for table in material.tables),
        frequency_section(material),
        pictures_section(material),
        curves_section(material),
        dynamics_section(material),
        protocol_section(material),
    ]
    keys = len({record.key for record in finished})
    return document(
        "Adaptive Focal Loss on six detectors",
        _introduction(material.tables, keys),
        [section for section in sections if section is not None],
        f"Made by <code>python -m scripts.report html</code> from {keys} finished runs. "
        "Hover over a dot, a line or a box for its name and value.",
    )


def _introduction(tables: Sequence[Table], runs: int) -> str:
    def distinct(name: str) -> int:
        return len({getattr(r, name) for t in tables for r in t.cells.values() if r and r.status == FINISHED})

    hours = sum({
        record.key: record.seconds or 0.0
        for table in tables
        for record in table.cells.values()
        if record is not None
    }.values()) / 3600  # fmt: skip
    tiles = [
        (str(runs), "finished runs"),
        (str(distinct("detector")), "detectors"),
        (str(distinct("loss")), "losses"),
        (str(distinct("dataset")), "data set" + "s" * (distinct("dataset") > 1)),
        (str(distinct("seed")), "seed" + "s" * (distinct("seed") > 1)),
        (f"{hours:.1f} h", "of training and evaluation"),
    ]
    boxes = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in tiles)
    return (
        '<p class="soft">One backbone, one data layer and one training loop; only the classification loss changes. '
        "AFL here is a reconstruction: the paper's formula is not public.</p>"
        f'<div class="tiles">{boxes}</div>'
    )
