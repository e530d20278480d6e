"""Where a loss moves AP: the classes of a table one by one, averaged over its detectors.

A group's AP is a mean over classes; this tells a loss that moves all of them a little from one that moves one of them a lot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from afl.reporting.intervals import Estimate, estimate, paired_difference
from afl.reporting.table import Table
from afl.tracking.record import FINISHED

BySeed = Mapping[int, float]


@dataclass(frozen=True)
class ClassRow:
    """AP of one class, or the mean over several, in [0, 1].

    Attributes:
        name: of the class.
        group: r, c or f; empty where seeds differ in it or the row is of several classes.
        values: by loss, then seed; the mean over the table's detectors.
    """

    name: str
    group: str
    values: Mapping[str, BySeed]

    def mean(self, loss: str) -> Estimate | None:
        return estimate([self.values[loss][seed] for seed in sorted(self.values[loss])])

    def difference(self, loss: str, baseline: str) -> Estimate | None:
        return paired_difference(self.values[loss], self.values[baseline])


def rows_of(table: Table, losses: Sequence[str], dataset: str) -> list[ClassRow]:
    """Every class of a data set, over the seeds for which each of ``losses`` has finished on every detector.

    Raises:
        ValueError: the table does not have one of the losses.
    """
    table.spec.require_losses(losses)
    runs = {
        seed: {loss: [table.cells[dataset, d, loss, seed] for d in table.spec.detectors] for loss in losses}
        for seed in table.spec.seeds
    }
    whole = {
        seed: own
        for seed, own in runs.items()
        if all(run is not None and run.status == FINISHED for cells in own.values() for run in cells)
    }
    groups: dict[str, set[str]] = {}
    for own in whole.values():
        for name, group in own[losses[0]][0].groups.items():
            groups.setdefault(name, set()).add(group)
    rows = []
    for name, found in groups.items():
        values: dict[str, dict[int, float]] = {loss: {} for loss in losses}
        for seed, own in whole.items():
            for loss, cells in own.items():
                figures = [run.per_class.get(name) for run in cells]
                if None not in figures:
                    values[loss][seed] = math.fsum(figures) / len(figures)
        if all(values.values()):
            rows.append(ClassRow(name, next(iter(found)) if len(found) == 1 else "", values))
    return rows


def most_moved(rows: Sequence[ClassRow], baseline: str, shown: int) -> list[ClassRow]:
    """The ``shown`` classes that some loss moves farthest from the baseline, and the mean over all others below them."""

    def distance(row: ClassRow) -> float:
        return max(abs(row.difference(loss, baseline).mean) for loss in row.values)

    ordered = sorted(rows, key=lambda row: (-distance(row), row.name))
    first, others = ordered[:shown], ordered[shown:]
    if not others:
        return first
    values = {
        loss: {
            seed: math.fsum(row.values[loss][seed] for row in others) / len(others)
            for seed in others[0].values[loss]
            if all(seed in row.values[loss] for row in others)
        }
        for loss in others[0].values
    }
    return [*first, ClassRow(f"mean of the other {len(others)}", "", values)]


def to_markdown(rows: Sequence[ClassRow], baseline: str) -> str:
    """Classes by losses, times 100; in brackets the paired difference to the baseline, bold where its interval is clear of zero."""
    losses = list(rows[0].values)
    lines = ["| class | group | " + " | ".join(losses) + " |", "| --- | --- |" + " ---: |" * len(losses)]
    for row in rows:
        places = []
        for loss in losses:
            place, moved = row.mean(loss).percent(), row.difference(loss, baseline)
            if loss != baseline:
                clear = "**" if moved.positive or moved.negative else ""
                place += f" ({clear}{moved.percent('+')}{clear})"
            places.append(place)
        lines.append(f"| {row.name} | {row.group} | " + " | ".join(places) + " |")
    return "\n".join(lines)
