"""Compares a table with published figures, the ``expected`` lines of its file in conf/table.

    expected:
      - {row: retinanet, loss: fl, metric: AP, from: 36.4, to: 37.4, source: torchvision to detectron2}
      - {row: average, loss: afl, over: fl, metric: AP, from: 1.0, source: the paper's abstract}

``row`` is a detector or ``average``. Figures are x 100. With ``over`` the figure is the paired difference to the table's
baseline. Without ``to`` the range has no upper end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from afl.config import ConfigError
from afl.reporting import Table

MET, BELOW, ABOVE, NONE = "as expected", "below", "above", "not trained"
NEEDED = ("row", "loss", "metric", "from", "source")
ALLOWED = (*NEEDED, "to", "over", "dataset")


@dataclass(frozen=True)
class Comparison:
    """One expected figure and the figure that was reached, x 100.

    Attributes:
        what: row, loss and metric in words.
        low: lower end of the expected range.
        high: upper end of the expected range, or None.
        source: publication that reports the figure.
        mean: the figure that was reached, None without a finished run.
        half: half width of its 95 % interval, None for one seed.
    """

    what: str
    low: float
    high: float | None
    source: str
    mean: float | None
    half: float | None

    @property
    def verdict(self) -> str:
        """Whether the figure, or its interval if there is one, overlaps the expected range."""
        if self.mean is None:
            return NONE
        half = self.half or 0.0
        if self.mean + half < self.low:
            return BELOW
        return ABOVE if self.high is not None and self.mean - half > self.high else MET

    def __str__(self) -> str:
        wanted = f"{self.low:g} to {self.high:g}" if self.high is not None else f"at least {self.low:g}"
        if self.high == self.low:
            wanted = f"{self.low:g}"
        interval = f" ± {self.half:.1f}" if self.half is not None else ""
        reached = "" if self.mean is None else f", reached {self.mean:.1f}{interval}"
        return f"{self.what}: expected {wanted} ({self.source}){reached}: {self.verdict}"


def compared(table: Table, expected: Sequence[Mapping[str, Any]]) -> list[Comparison]:
    """Compare ``table`` with the expected figures. Lines about rows or losses that the table lacks are skipped, because the
    command line can restrict a table.

    Raises:
        ConfigError: a line lacks a field, has an unknown field, or names another baseline than the table.
    """
    found = [
        _compared(table, line, f"expected[{i}] of table {table.spec.name}") for i, line in enumerate(expected)
    ]
    return [one for one in found if one is not None]


def _compared(table: Table, line: Mapping[str, Any], where: str) -> Comparison | None:
    wrong = [name for name in NEEDED if name not in line] + [name for name in line if name not in ALLOWED]
    if wrong:
        raise ConfigError(
            f"{where}: field {wrong[0]!r} is missing or unknown; the fields are {', '.join(ALLOWED)}"
        )
    if line.get("over") not in (None, table.spec.baseline):
        raise ConfigError(
            f"{where}: over is {line['over']}, but the baseline of the table is {table.spec.baseline}"
        )
    dataset = line.get("dataset", table.spec.datasets[0])
    block = next(
        (one for one in table.blocks if (one.dataset, one.metric) == (dataset, line["metric"])), None
    )
    if block is None or line["loss"] not in block.rows.get(line["row"], {}):
        return None
    entry = block.rows[line["row"]][line["loss"]]
    found = entry.difference if line.get("over") else entry.value
    what = (
        f"{line['row']} {line['loss']}"
        + (f" over {line['over']}" if line.get("over") else "")
        + f", {line['metric']}"
    )
    return Comparison(
        what=what,
        low=float(line["from"]),
        high=None if line.get("to") is None else float(line["to"]),
        source=line["source"],
        mean=None if found is None else 100 * found.mean,
        half=None if found is None or found.half is None else 100 * found.half,
    )
