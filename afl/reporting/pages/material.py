"""The material of a report, and the colours of its losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from afl.reporting.records import Unit
from afl.reporting.spec import TableSpec
from afl.reporting.table import Table
from afl.tracking import FINISHED, Picture, Record

SHOWN_STYLES = 8
# These losses have the same colours in every table, even if it lacks some of them.
FOREMOST = ("afl", "cbl", "cbfl")


@dataclass(frozen=True)
class Gallery:
    """Some validation images of a data set with the detections of one run.

    Attributes:
        record: of the run.
        names: (C,) class names, ``groups``: (C,) "r", "c" or "f".
        pictures: the same images in the same order for every run of a data set.
    """

    record: Record
    names: Sequence[str]
    groups: Sequence[str]
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Material:
    """Everything a report shows.

    Attributes:
        tables: at least one.
        instances: by data set, training instances by class name. Data sets that are not on this machine are left out.
        curves: lines of ``metrics.jsonl`` by run key.
        galleries: of the runs whose detections and images are on this machine.
        missing: sentences that say what could not be read, and how to get it.
    """

    tables: Sequence[Table]
    instances: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    curves: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    galleries: Sequence[Gallery] = ()
    missing: Sequence[str] = ()

    @property
    def main(self) -> Table:
        """The first table. All charts but those of the differences are drawn for it."""
        return self.tables[0]

    def records(self, table: Table, dataset: str, detector: str, loss: str) -> list[Record]:
        """Finished runs of a cell, one for each unit."""
        return list(self._by_unit(table, dataset, detector, loss).values())

    def pairs(
        self, table: Table, dataset: str, detector: str, loss: str
    ) -> tuple[list[Record], list[Record]]:
        """Finished runs of the baseline and of a loss, of the units that have both."""
        baseline = self._by_unit(table, dataset, detector, table.spec.baseline or "")
        own = self._by_unit(table, dataset, detector, loss)
        both = [unit for unit in own if unit in baseline]
        return [baseline[unit] for unit in both], [own[unit] for unit in both]

    @staticmethod
    def _by_unit(table: Table, dataset: str, detector: str, loss: str) -> dict[Unit, Record]:
        cells = {unit: table.cells.get((dataset, detector, loss, unit)) for unit in table.spec.units(dataset)}
        return {
            unit: found for unit, found in cells.items() if found is not None and found.status == FINISHED
        }


def styles(spec: TableSpec) -> dict[str, str]:
    """The colour of every loss of a table: grey for the baseline, fixed colours for the ``FOREMOST``."""
    kept = [loss for loss in FOREMOST if loss != spec.baseline]
    ordered = [
        *([spec.baseline] if spec.baseline else []),
        *kept,
        *(loss for loss in spec.losses if loss not in (spec.baseline, *kept)),
    ]
    return {
        loss: f"s{i}" if i < SHOWN_STYLES else "sx" for i, loss in enumerate(ordered) if loss in spec.losses
    }
