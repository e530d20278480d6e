"""Compares a user's table with the committed one of the same name, and checks whether differences are within the noise over seeds.

The noise of one run is the standard deviation s over the committed seeds, pooled over the losses of a detector. With m seeds of the
user and n committed ones, a difference of the means is within noise if its size is at most t(0.975) s sqrt(1/m + 1/n). About one
entry in twenty is outside by chance.

Variants of a data set, such as splits, differ by more than seeds. So seeds are compared within each of the V variants that both tables
have, and the means over these variants may differ by t(0.975) s / V times the root of the sum of 1/m + 1/n over them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from afl.reporting.frames import Frames
from afl.reporting.intervals import t_quantile
from afl.reporting.markdown import markdown
from afl.reporting.records import Unit, variant_of
from afl.reporting.table import Table

EQUAL, WITHIN, OUTSIDE, UNKNOWN = "equal", "within noise", "outside noise", "noise unknown"


@dataclass(frozen=True)
class Agreement:
    """One metric of one loss on one row, in [0, 1].

    Attributes:
        own, kept: means over the seeds that each table has, averaged over the variants that both have.
        allowed: largest difference within noise; None if no committed cell of the detector has two seeds.
        equal: both tables have the same seeds and the same values.
    """

    dataset: str
    detector: str
    loss: str
    metric: str
    own: float
    kept: float
    allowed: float | None
    equal: bool

    @property
    def verdict(self) -> str:
        """``equal``, ``within noise``, ``outside noise`` or ``noise unknown``."""
        if self.equal:
            return EQUAL
        if self.allowed is None:
            return UNKNOWN
        return WITHIN if abs(self.own - self.kept) <= self.allowed else OUTSIDE


def agreements(own: Table, kept: Table) -> list[Agreement]:
    """All entries that both tables have, by data set, detector, loss and metric; averages are left out."""
    found = []
    for dataset in own.spec.datasets:
        if dataset not in kept.spec.datasets:
            continue
        metrics = [metric for metric in own.spec.metrics if metric in kept.spec.metrics]
        values = {metric: (own.values(dataset, metric), kept.values(dataset, metric)) for metric in metrics}
        for detector in own.spec.detectors:
            for loss in own.spec.losses:
                for metric, (ours, theirs) in values.items():
                    mine = ours.get(detector, {}).get(loss, {})
                    committed = theirs.get(detector, {}).get(loss, {})
                    pairs = _by_variant(mine, committed)
                    if pairs:
                        noise = _noise(theirs[detector])
                        variance = (
                            sum(1 / len(one) + 1 / len(other) for one, other in pairs) / len(pairs) ** 2
                        )
                        found.append(
                            Agreement(
                                dataset, detector, loss, metric,
                                own=fmean(fmean(one) for one, _ in pairs), kept=fmean(fmean(other) for _, other in pairs),
                                allowed=None if noise is None else noise * math.sqrt(variance), equal=mine == committed,
                            )
                        )  # fmt: skip
    return found


def _by_variant(
    own: Mapping[Unit, float], kept: Mapping[Unit, float]
) -> list[tuple[list[float], list[float]]]:
    """The values over seeds of each variant of the data set that both have."""
    both: dict[str, tuple[list[float], list[float]]] = {}
    for side, values in enumerate((own, kept)):
        for unit, value in values.items():
            both.setdefault(variant_of(unit), ([], []))[side].append(value)
    return [pair for pair in both.values() if all(pair)]


def _noise(losses: Mapping[str, Mapping[Any, float]]) -> float | None:
    """t(0.975) times the standard deviation of one run, pooled over losses and variants of the data set; None without a repeated cell."""
    import pandas as pd  # slow to import, and a plan needs no frame

    from afl.reporting.questions import pooled_deviation, variants_apart

    deviation, freedom = pooled_deviation(variants_apart(pd.DataFrame(losses).rename_axis("unit")))
    return t_quantile(freedom) * deviation if freedom else None


def other_protocol(own: Table, kept: Table) -> list[str]:
    """``name: your value, committed value`` for each entry of the protocol in which the two tables differ."""
    rows = {cell[:3] for cell, record in own.cells.items() if record is not None}

    def entries(table: Table) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for cell, record in table.cells.items():
            if record is not None and cell[:3] in rows:
                for name, value in record.protocol.items():
                    found.setdefault(name, set()).add(str(value))
        return found

    ours, theirs = entries(own), entries(kept)
    return [
        f"{name}: {' / '.join(sorted(ours[name]))}, committed {' / '.join(sorted(theirs[name]))}"
        for name in ours
        if name in theirs and ours[name] != theirs[name]
    ]


def to_markdown(found: list[Agreement]) -> str:
    """One line for each entry, metrics times 100."""
    rows = (
        [
            one.dataset,
            one.detector,
            one.loss,
            one.metric,
            f"{100 * one.own:.1f}",
            f"{100 * one.kept:.1f}",
            one.verdict,
        ]
        for one in found
    )
    head = ["data set", "detector", "loss", "metric", "yours", "committed", ""]
    return markdown(head, rows, align="--- --- --- --- ---: ---: ---") + "\n"


def to_rich(found: list[Agreement], metrics: tuple[str, ...]) -> Frames:
    """A table for the terminal with a row for each cell: for each of ``metrics`` your value, the committed one and the verdict."""
    rows: dict[tuple[str, str, str], dict[str, Agreement]] = {}
    for one in found:
        rows.setdefault((one.dataset, one.detector, one.loss), {})[one.metric] = one
    several = len({dataset for dataset, _, _ in rows}) > 1
    texts: dict[str, list[str]] = {}
    for names, entries in rows.items():
        cells = texts[" ".join(names if several else names[1:])] = []
        for metric in metrics:
            entry = entries.get(metric)
            cells += (
                [f"{100 * entry.own:.1f}", f"{100 * entry.kept:.1f}", entry.verdict]
                if entry
                else ["", "", ""]
            )
    kinds = ("yours", "committed", "difference")
    columns = [f"{metric}\n{kind}" for metric in metrics for kind in kinds]
    verdicts = [f"{metric}\n{kinds[-1]}" for metric in metrics]
    title = "Your table and the committed one, x 100"
    return Frames(title, columns, texts, left=verdicts, group=len(kinds))
