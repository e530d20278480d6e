"""One figure of a table of remedies: what each loss gains on rare classes against what it loses on frequent ones."""

from __future__ import annotations

import matplotlib.style
from matplotlib.figure import Figure

from afl.reporting.figures import RECONSTRUCTION, STYLE
from afl.reporting.push import gains
from afl.reporting.table import Table


def trades(table: Table) -> dict[str, dict[str, tuple[float, float]]]:
    """By loss, the gains of rare and frequent classes over the baseline: mean in points of AP and half-width of its interval.

    Losses without both are left out: those with no seed on every detector, and tables without one of the groups.
    """
    found = {loss: gains(table, loss) for loss in table.spec.losses if loss != table.spec.baseline}
    return {loss: own for loss, own in found.items() if {"r", "f"} <= own.keys()}


def draw_trade(table: Table) -> Figure:
    """A point for each loss: frequent classes to the right, rare ones up, the baseline where the lines cross.

    Raises:
        ValueError: no loss has AP_r and AP_f on every detector of the table for a seed, or there is no baseline.
    """
    if table.spec.baseline is None:
        raise ValueError(f"table {table.spec.name} has no baseline to compare with")
    points = trades(table)
    if not points:
        raise ValueError(
            f"table {table.spec.name} has no loss with AP_r and AP_f on every detector for a seed of {table.spec.baseline}"
        )
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(5.2, 4.2))
        axis = figure.subplots()
        axis.axhline(0.0, color="#666666", linewidth=0.6)
        axis.axvline(0.0, color="#666666", linewidth=0.6)
        for loss, own in points.items():
            (x, wide), (y, high) = own["f"], own["r"]
            color = "#D55E00" if "afl" in loss else "#0072B2"
            axis.errorbar(
                x,
                y,
                xerr=wide or None,
                yerr=high or None,
                color=color,
                marker="o",
                markersize=3,
                elinewidth=0.4,
            )
            axis.annotate(loss, (x, y), xytext=(3, 2), textcoords="offset points", fontsize=5)
        axis.set_xlabel(f"frequent classes: AP points over {table.spec.baseline}")
        axis.set_ylabel(f"rare classes: AP points over {table.spec.baseline}")
        note = f" ({RECONSTRUCTION})" if any("afl" in loss for loss in points) else ""
        figure.suptitle(f"What the tail gains and the head loses{note}", fontsize=8)
    return figure
