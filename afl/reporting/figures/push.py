"""The mechanism in one figure: the gradient of each loss on each frequency group over training, and the gain of each group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from afl.reporting.figures.style import GREY, GROUP_COLORS, styled, with_reconstruction
from afl.reporting.names import GROUPS
from afl.reporting.questions import gains, push_over_training
from afl.reporting.table import Table

MOST_ACROSS = 6  # losses in a row; further ones go below


def draw_push(tables: Mapping[str, tuple[Table, pd.DataFrame]], losses: Sequence[str]) -> Figure:
    """For each table, the push ratio of each loss over training by frequency group, and on the right the gains of the groups.

    Args:
        tables: by title, a table with the long table of its records.
        losses: those of them that a table has are drawn; none: every loss of the tables.

    Raises:
        ValueError: no table has gradient dynamics of one of the losses and of its baseline.
    """
    losses = losses or list(dict.fromkeys(loss for table, _ in tables.values() for loss in table.spec.losses))
    shown = {}
    for title, (table, found) in tables.items():
        own = [loss for loss in losses if loss in table.spec.losses and loss != table.spec.baseline]
        pushed = push_over_training(found, own, table.spec.baseline)
        if not pushed.empty:
            shown[title] = (table, pushed)
    drawn = [loss for loss in losses if any(loss in pushed.index for _, pushed in shown.values())]
    if not drawn:
        raise ValueError(f"no table has gradient dynamics of {', '.join(losses)} and of its baseline")
    across = min(len(drawn), MOST_ACROSS)
    down = -(-len(drawn) // across)
    with styled():
        figure = Figure(figsize=(1.5 * (across + 1) + 0.6, 1.35 * down * len(shown) + 0.9))
        grid = figure.add_gridspec(down * len(shown), across + 1)
        for block, (title, (table, pushed)) in enumerate(shown.items()):
            first = block * down
            panels = [figure.add_subplot(grid[first + k // across, k % across]) for k in range(len(drawn))]
            _draw_ratios(panels, drawn, pushed)
            for row in range(0, len(drawn), across):
                present = [panel for panel in panels[row : row + across] if panel.axison]
                for panel in present[:1]:
                    panel.set_ylabel(f"{title}\ntimes {table.spec.baseline}", fontsize=7)
            for panel in panels[-across:] if block == len(shown) - 1 else ():
                panel.set_xlabel("training, %")
            side = figure.add_subplot(grid[first : first + down, -1])
            _draw_gains(side, table, [loss for loss in drawn if loss in pushed.index])
            if block == 0:
                side.set_title("AP gained, points")
            for panel, loss in zip(panels, drawn, strict=True):
                if block == 0 or down > 1:
                    panel.set_title(loss)
        title = "Sum of |∂L/∂z| over the positives of a group in logged batches, and the gain of its AP"
        figure.suptitle(with_reconstruction(title, drawn))
        handles = [Line2D([], [], color=color) for color in GROUP_COLORS.values()]
        figure.legend(handles, list(GROUPS.values()), loc="outside lower center", ncols=3)
    return figure


def _draw_ratios(panels: Sequence[Axes], losses: Sequence[str], pushed: pd.DataFrame) -> None:
    """A panel for each loss, all with the same axes."""
    values = pushed[list(GROUPS)].to_numpy()
    limits = (min(0.8, np.nanmin(values) / 1.15), max(1.25, np.nanmax(values) * 1.15))
    for panel, loss in zip(panels, losses, strict=True):
        if loss not in pushed.index:
            panel.set_axis_off()
            continue
        own = pushed.loc[loss]
        panel.axhline(1.0, color=GREY, linewidth=0.6)
        for group, color in GROUP_COLORS.items():
            panel.plot(own.middle, own[group], color=color, marker=".", markersize=2.5)
        panel.set(yscale="log", xlim=(0, 100), xticks=(0, 50, 100), yticks=(0.125, 0.25, 0.5, 1, 2, 4, 8))
        panel.set_ylim(*limits)
        panel.yaxis.set_major_formatter("{x:g}")
        panel.minorticks_off()


def _draw_gains(axis: Axes, table: Table, losses: Sequence[str]) -> None:
    """The gains of the groups with their pooled 95 % intervals, the first loss on top."""
    found = gains(table)
    axis.axvline(0.0, color=GREY, linewidth=0.6)
    for place, loss in enumerate(losses):
        for offset, (group, color) in zip((-0.22, 0.0, 0.22), GROUP_COLORS.items(), strict=True):
            own = found.get(loss, {}).get(f"AP_{group}")
            if own is not None:
                half = None if own.half is None else 100 * own.half
                axis.errorbar(
                    100 * own.mean,
                    place + offset,
                    xerr=half,
                    color=color,
                    marker="o",
                    markersize=3,
                    elinewidth=0.8,
                )
    axis.set(yticks=range(len(losses)), ylim=(len(losses) - 0.5, -0.5))
    axis.set_yticklabels(losses, fontsize=6)
