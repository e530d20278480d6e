"""One figure of the mechanism: how hard each loss pushes each frequency group over training, beside what each group gains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from afl.reporting.compare import GROUP_COLORS
from afl.reporting.figures import RECONSTRUCTION, STYLE
from afl.reporting.intervals import paired_difference
from afl.reporting.names import GROUPS
from afl.reporting.questions import push_ratios
from afl.reporting.table import Table


def push_over_training(found: pd.DataFrame, losses: Sequence[str], baseline: str) -> pd.DataFrame:
    """``push_ratios`` averaged over detectors (geometric mean).

    Returns:
        Rows (loss, part), columns r, c, f and ``middle``, the middle of the part in percent of the training.
    """
    ratios = push_ratios(found, losses, baseline)
    if ratios.empty:
        return ratios
    groups = ratios[list(GROUPS)]
    mean = np.exp(np.log(groups.where(groups > 0)).groupby(level=["loss", "part"], sort=False).mean())
    parts = mean.index.get_level_values("part") + 0.5
    return mean.assign(middle=100 * parts / (mean.index.get_level_values("part").max() + 1))


def gains(table: Table, loss: str) -> dict[str, tuple[float, float]]:
    """What each frequency group gains over the baseline on average over detectors, in points of AP, and the half-width of its
    95 % interval over seeds, 0 for one seed; all data sets of the table together."""
    found = {}
    for group in GROUPS:
        own = table.frame[
            (table.frame.metric == f"AP_{group}") & table.frame.loss.isin([loss, table.spec.baseline])
        ]
        own = own[own.detector.isin(table.spec.detectors)]
        whole = own.groupby(["dataset", "unit", "loss"]).value.agg(["mean", "count"])
        whole = whole["mean"].where(whole["count"] == len(table.spec.detectors)).unstack("loss").dropna()
        if whole.shape[1] == 2 and len(whole):
            difference = paired_difference(whole[loss].to_dict(), whole[table.spec.baseline].to_dict())
            found[group] = (100 * difference.mean, 100 * (difference.half or 0.0))
    return found


def draw_push(tables: Mapping[str, tuple[Table, pd.DataFrame]], losses: Sequence[str]) -> Figure:
    """A row for each table: the push ratio of each loss over training by frequency group, then the gains of the groups.

    Args:
        tables: by title, a table with the long table of its records.
        losses: those of them that a table has are drawn.

    Raises:
        ValueError: no table has gradient dynamics of one of the losses and of its baseline.
    """
    rows = {}
    for title, (table, found) in tables.items():
        own = [loss for loss in losses if loss in table.spec.losses and loss != table.spec.baseline]
        pushed = push_over_training(found, own, table.spec.baseline)
        if not pushed.empty:
            rows[title] = (table, pushed)
    drawn = [loss for loss in losses if any(loss in pushed.index for _, pushed in rows.values())]
    if not drawn:
        raise ValueError(f"no table has gradient dynamics of {', '.join(losses)} and of its baseline")
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(1.5 * (len(drawn) + 1) + 0.6, 1.35 * len(rows) + 0.9))
        axes = figure.subplots(len(rows), len(drawn) + 1, squeeze=False)
        for (title, (table, pushed)), row in zip(rows.items(), axes, strict=True):
            for loss, axis in zip(drawn, row, strict=False):
                _draw_ratio(axis, pushed.loc[loss] if loss in pushed.index else None)
            values = pushed[list(GROUPS)].to_numpy()
            limits = (min(0.8, np.nanmin(values) / 1.15), max(1.25, np.nanmax(values) * 1.15))
            for axis in row[:-1]:
                axis.set_ylim(*limits)
            row[0].set_ylabel(f"{title}\ntimes {table.spec.baseline}", fontsize=7)
            _draw_gains(row[-1], table, [loss for loss in drawn if loss in pushed.index])
        for axis, loss in zip(axes[0], [*drawn, "points of AP gained"], strict=True):
            axis.set_title(loss)
        for axis in axes[-1, :-1]:
            axis.set_xlabel("training, %")
        note = f" ({RECONSTRUCTION})" if any("afl" in loss for loss in drawn) else ""
        figure.suptitle(f"Sum of |∂L/∂z| over positives, and what it buys{note}", fontsize=8)
        handles = [Line2D([], [], color=color) for color in GROUP_COLORS.values()]
        figure.legend(handles, list(GROUPS.values()), loc="outside lower center", ncols=3)
    return figure


def _draw_ratio(axis: Axes, own: pd.DataFrame | None) -> None:
    if own is None:
        axis.set(xticks=(), yticks=())
        axis.spines[:].set_visible(False)
        return
    axis.axhline(1.0, color="#666666", linewidth=0.6)
    for group, color in GROUP_COLORS.items():
        axis.plot(own.middle, own[group], color=color, marker=".", markersize=2.5)
    axis.set(yscale="log", xlim=(0, 100), xticks=(0, 50, 100), yticks=(0.25, 0.5, 1, 2, 4, 8))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()


def _draw_gains(axis: Axes, table: Table, losses: Sequence[str]) -> None:
    """Groups of each loss below each other, the first loss on top."""
    axis.axvline(0.0, color="#666666", linewidth=0.6)
    for place, loss in enumerate(losses):
        for group, (mean, half) in gains(table, loss).items():
            at = place + {"r": -0.22, "c": 0.0, "f": 0.22}[group]
            axis.errorbar(
                mean,
                at,
                xerr=half or None,
                color=GROUP_COLORS[group],
                marker="o",
                markersize=3,
                elinewidth=0.8,
            )
    axis.set(yticks=range(len(losses)), ylim=(len(losses) - 0.5, -0.5))
    axis.set_yticklabels(losses, fontsize=6)
