"""One loss against another of the same table: paired differences by seed with their intervals, for each row and metric."""

from __future__ import annotations

from afl.reporting.intervals import Estimate, paired_difference
from afl.reporting.table import Table

Contrast = dict[str, dict[str, Estimate | None]]
"""By row, then metric."""


def contrast_of(table: Table, loss: str, against: str) -> Contrast:
    """Differences of ``loss`` to ``against`` over the seeds that both have; None where there is none.

    Raises:
        ValueError: the table does not have one of the two.
    """
    table.spec.require_losses((loss, against))
    found: Contrast = {}
    for block in table.blocks:
        for row, values in table.values(block.dataset, block.metric).items():
            found.setdefault(row, {})[block.metric] = paired_difference(values[loss], values[against])
    return found


def to_markdown(found: Contrast, loss: str, against: str) -> str:
    """Rows by metrics, times 100; bold where the interval is clear of zero."""
    metrics = list(next(iter(found.values())))
    lines = [f"| {loss} - {against} | " + " | ".join(metrics) + " |", "| --- |" + " ---: |" * len(metrics)]
    for row, differences in found.items():
        lines.append(f"| {row} | " + " | ".join(_place(differences[metric]) for metric in metrics) + " |")
    return "\n".join(lines)


def _place(difference: Estimate | None) -> str:
    if difference is None:
        return "—"
    text = difference.percent("+")
    return f"**{text}**" if difference.positive or difference.negative else text
