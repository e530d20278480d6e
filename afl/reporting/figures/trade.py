"""One figure of a table: the gain of each loss on the rarest classes against its loss on the most frequent ones."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox, BboxBase

from afl.reporting.figures.style import BLUE, GREY, RED, styled, with_reconstruction
from afl.reporting.intervals import Estimate
from afl.reporting.names import METRICS
from afl.reporting.questions import gains
from afl.reporting.table import Table
from afl.tracking import names_afl

TAILS, HEADS = ("AP_r", "AP_c"), ("AP_f", "AP_c")
# Places of a name around its point: directions in radians, from the upper right, and distances in points.
_DIRECTIONS = np.pi / 4 + np.linspace(0, 2 * np.pi, 16, endpoint=False)
_DISTANCES = (4, 8, 14, 21, 30, 40, 52)


def trades(table: Table) -> tuple[str, str, dict[str, tuple[Estimate, Estimate]]]:
    """The metric of the rarest group and of the most frequent one, and by loss the gains over the baseline in both.

    Losses that no seed has on every detector are left out.

    Raises:
        ValueError: the table has no baseline, or no loss to compare with it in two groups.
    """
    found = gains(table)
    for tail, head in itertools.product(TAILS, HEADS):
        points = {loss: (own[tail], own[head]) for loss, own in found.items() if {tail, head} <= own.keys()}
        if points and tail != head:
            return tail, head, points
    raise ValueError(
        f"table {table.spec.name} has no loss with AP of rare or common and of frequent classes on every detector for a seed of "
        f"{table.spec.baseline}"
    )


def draw_trade(table: Table) -> Figure:
    """A point for each loss with its pooled 95 % intervals: the head to the right, the tail up, the baseline where the lines cross.

    Raises:
        ValueError: as ``trades``.
    """
    tail, head, points = trades(table)
    with styled():
        figure = Figure(figsize=(6.4, 5.2))
        axis = figure.subplots()
        axis.axhline(0.0, color=GREY, linewidth=0.6)
        axis.axvline(0.0, color=GREY, linewidth=0.6)
        for loss, pair in points.items():
            (high, tall), (right, wide) = (
                (100 * own.mean, 100 * own.half if own.half else None) for own in pair
            )
            color = RED if names_afl(loss) else BLUE
            axis.errorbar(
                right,
                high,
                xerr=wide,
                yerr=tall,
                color=color,
                marker="o",
                markersize=3.5,
                elinewidth=0.6,
                ecolor=(color, 0.5),
                alpha=0.9,
            )
        axis.set_xlabel(f"{METRICS[head]}: points over {table.spec.baseline}")
        axis.set_ylabel(f"{METRICS[tail]}: points over {table.spec.baseline}")
        for side, which in (("y", 0), ("x", 1)):
            # The points decide: with two seeds an interval can be ten times as wide as all of them together.
            values = [0.0, *(100 * pair[which].mean for pair in points.values())]
            room = 0.12 * (max(values) - min(values)) or 1.0
            getattr(axis, f"set_{side}lim")(min(values) - room, max(values) + room)
        number = len(table.spec.detectors)
        title = f"Gain of the tail and loss of the head: {table.spec.label or table.spec.name}\n"
        title += f"mean over {number} detectors" if number > 1 else str(table.spec.detectors[0])
        if all(own.half is None for pair in points.values() for own in pair):
            title += ", one seed: no intervals"
        figure.suptitle(with_reconstruction(title, points))
        figure.draw_without_rendering()
        _label(axis, points)
    return figure


def _label(axis: Axes, points: Mapping[str, tuple[Estimate, Estimate]]) -> None:
    """Write each name at the nearest place around its point that covers the fewest points, intervals and other names."""
    taken = []
    for high, right in points.values():
        x, y, wide, tall = (100 * value for value in (right.mean, high.mean, right.half or 0, high.half or 0))
        left, middle, end, top = axis.transData.transform(
            [(x - wide, y), (x, y), (x + wide, y), (x, y + tall)]
        )
        taken += [
            Bbox.from_bounds(*(middle - 4), 8, 8),
            Bbox.from_extents(left[0], middle[1] - 1, end[0], middle[1] + 1),
            Bbox.from_extents(middle[0] - 1, 2 * middle[1] - top[1], middle[0] + 1, top[1]),
        ]
    scale = axis.figure.dpi / 72
    ways = list(zip(np.cos(_DIRECTIONS), np.sin(_DIRECTIONS), strict=True))
    for loss, (high, right) in points.items():
        point = 100 * right.mean, 100 * high.mean
        text = axis.annotate(
            loss.rsplit("/", 1)[-1], point, xytext=(0, 0), textcoords="offset points", fontsize=6, ha="center",
            va="center", arrowprops={"arrowstyle": "-", "linewidth": 0.3, "color": GREY, "shrinkA": 0, "shrinkB": 2},
        )  # fmt: skip
        # Text's own method: that of an annotation includes the line to the point.
        own = Text.get_window_extent(text)
        x, y = axis.transData.transform(point)
        middles = [
            (x + across * (scale * distance + own.width / 2), y + up * (scale * distance + own.height / 2))
            for distance in _DISTANCES
            for across, up in ways
        ]
        boxes = [
            Bbox.from_bounds(u - own.width / 2, v - own.height / 2, own.width, own.height) for u, v in middles
        ]
        covered = [box.count_overlaps(taken) + len(taken) * (not _contains(axis.bbox, box)) for box in boxes]
        best = int(np.argmin(covered))
        text.set_position(((middles[best][0] - x) / scale, (middles[best][1] - y) / scale))
        taken.append(boxes[best])


def _contains(outer: BboxBase, inner: BboxBase) -> bool:
    return outer.x0 <= inner.x0 <= inner.x1 <= outer.x1 and outer.y0 <= inner.y0 <= inner.y1 <= outer.y1
