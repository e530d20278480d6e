"""The report: all figures of the records of some tables in one page."""

from __future__ import annotations

from collections.abc import Sequence

from afl.reporting.pages.dynamics import dynamics_section
from afl.reporting.pages.frequency import frequency_section
from afl.reporting.pages.material import Material
from afl.reporting.pages.page import document
from afl.reporting.pages.pictures import pictures_section
from afl.reporting.pages.protocol import protocol_section
from afl.reporting.pages.results import results_section
from afl.reporting.pages.training import curves_section
from afl.tracking import FINISHED, RECONSTRUCTION, Record


def report(material: Material) -> str:
    """The page as HTML.

    Raises:
        ValueError: no table has a finished cell.
    """
    runs = {
        record.key: record
        for table in material.tables
        for record in table.cells.values()
        if record is not None and record.status == FINISHED
    }
    if not runs:
        raise ValueError("no table has a finished run to report on")
    sections = [
        *(results_section(table) for table in material.tables),
        frequency_section(material),
        pictures_section(material),
        curves_section(material),
        dynamics_section(material),
        protocol_section(material),
    ]
    return document(
        "Adaptive Focal Loss on six detectors",
        [section for section in sections if section is not None],
        _tiles(list(runs.values())),
        "One backbone, one data layer and one training loop; only the classification loss changes. "
        f"{RECONSTRUCTION}.",
        len(runs),
    )


def _tiles(runs: Sequence[Record]) -> list[tuple[str, str]]:
    def distinct(name: str) -> int:
        return len({getattr(record, name) for record in runs})

    hours = sum(record.seconds or 0.0 for record in runs) / 3600
    return [
        (str(len(runs)), "finished runs"),
        (str(distinct("detector")), "detectors"),
        (str(distinct("loss")), "losses"),
        (str(distinct("dataset")), "data set" + "s" * (distinct("dataset") > 1)),
        (str(distinct("seed")), "seed" + "s" * (distinct("seed") > 1)),
        (f"{hours:.1f} h", "of training and evaluation"),
    ]
