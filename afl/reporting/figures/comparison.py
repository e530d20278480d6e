"""A figure of the differences in AP between two runs."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from afl.reporting.compare import Comparison
from afl.reporting.figures.style import BLACK, GREY, GROUP_COLORS, WIDTH, styled
from afl.reporting.names import GROUPS, METRICS


def draw_comparison(found: Comparison) -> Figure:
    """Differences in points of AP: overall and by group above, below them the classes with the largest changes, in the colours of their
    groups."""
    overall = [(name, 100 * (b - a)) for name, a, b in found.metrics if name in METRICS]
    moved = found.most_moved()
    with styled():
        figure = Figure(figsize=(WIDTH, 1.3 + 0.15 * (len(overall) + len(moved))))
        above, below = figure.subplots(
            2, 1, height_ratios=(max(len(overall), 1), max(len(moved), 1)), sharex=True
        )
        colors = [GROUP_COLORS.get(name[-1], BLACK) if "_" in name else BLACK for name, _ in overall]
        above.barh(
            [name for name, _ in overall][::-1], [v for _, v in overall][::-1], color=colors[::-1], height=0.7
        )
        names = [name if len(name) <= 24 else f"{name[:23]}…" for name, *_ in moved]
        # Positions instead of names, because shortened names may be equal.
        below.barh(
            range(len(moved)),
            [100 * (b - a) for *_, a, b in moved],
            color=[GROUP_COLORS[group] for _, group, *_ in moved],
            height=0.7,
        )
        below.set_yticks(range(len(moved)), names)
        for axis in (above, below):
            axis.axvline(0, color=GREY, linewidth=0.6)
            axis.grid(axis="y", visible=False)
            axis.set_axisbelow(True)
        below.set_xlabel("points of AP, second run minus first")
        above.set_title(f"{found.first.key}\nto {found.second.key}", fontsize=7)
        handles = [Patch(color=color) for color in GROUP_COLORS.values()]
        figure.legend(handles, GROUPS.values(), loc="outside lower center", ncols=3)
    return figure
