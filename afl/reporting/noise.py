"""How much a number of a table changes when nothing but the seed does, and what difference that leaves visible.

    s^2   = sum over arms and seeds of (x - mean of the arm)^2 / sum over arms of (n - 1)     pooled over the arms of a row
    d^2   = the same of the differences to the baseline by seed
    half  = t(0.975, n - 1) d / sqrt(n)                                half-width of the interval that n seeds would give

All arms of a row are pooled, because three to five seeds of one arm alone say little about its spread.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from afl.reporting.intervals import t_quantile
from afl.reporting.table import Table

Values = Mapping[str, Mapping[int, float]]
"""By arm, then seed."""


@dataclass(frozen=True)
class Noise:
    """Spread of one metric in one row of a table.

    Attributes:
        row, metric: which.
        spread: s, standard deviation over seeds; None where no arm has two.
        paired: d, standard deviation of the difference to the baseline by seed; None likewise.
        freedom: degrees of freedom behind ``spread``.
    """

    row: str
    metric: str
    spread: float | None
    paired: float | None
    freedom: int

    def half_width(self, seeds: int) -> float | None:
        """Of the 95 % interval of a paired difference over so many seeds."""
        if self.paired is None:
            return None
        return t_quantile(seeds - 1) * self.paired / math.sqrt(seeds)


def noise_of(table: Table) -> list[Noise]:
    """Every row and metric of a table of one data set."""
    found = []
    for block in table.blocks:
        for row, values in table.values(block.dataset, block.metric).items():
            spread, freedom = pooled(values.values())
            paired, _ = pooled(differences(values, table.spec.baseline).values())
            found.append(Noise(row, block.metric, spread, paired, freedom))
    return found


def differences(values: Values, baseline: str) -> Values:
    """Of every other arm to the baseline, by the seeds that both have."""
    base = values[baseline]
    return {
        arm: {seed: runs[seed] - base[seed] for seed in runs.keys() & base.keys()}
        for arm, runs in values.items()
        if arm != baseline
    }


def pooled(groups: Iterable[Mapping[int, float]]) -> tuple[float | None, int]:
    """Standard deviation within groups, and its degrees of freedom."""
    total, freedom = 0.0, 0
    for group in groups:
        if len(group) > 1:
            mean = math.fsum(group.values()) / len(group)
            total += math.fsum((value - mean) ** 2 for value in group.values())
            freedom += len(group) - 1
    return (math.sqrt(total / freedom) if freedom else None), freedom


def to_markdown(found: Sequence[Noise], seeds: int) -> str:
    """Rows by metrics, times 100: spread over seeds / half-width of a paired difference over ``seeds`` seeds."""
    metrics = list(dict.fromkeys(noise.metric for noise in found))
    by_place = {(noise.row, noise.metric): noise for noise in found}
    rows = list(dict.fromkeys(noise.row for noise in found))
    lines = [
        f"Standard deviation over seeds / half-width of the 95 % interval of a difference to the baseline over {seeds} seeds, "
        "x 100, pooled over the arms of a row:",
        "",
        "|  | " + " | ".join(metrics) + " |",
        "| --- |" + " ---: |" * len(metrics),
    ]
    for row in rows:
        places = [by_place[row, metric] for metric in metrics]
        lines.append(f"| {row} | " + " | ".join(_place(noise, seeds) for noise in places) + " |")
    return "\n".join(lines)


def _place(noise: Noise, seeds: int) -> str:
    if noise.spread is None or noise.paired is None:
        return "one seed"
    return f"{100 * noise.spread:.1f} / {100 * noise.half_width(seeds):.1f}"
