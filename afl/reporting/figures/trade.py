"""One figure of a table: the gain of each loss on the rarest classes against its loss on the most frequent ones."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from afl.reporting.figures.style import BLUE, GREY, RED, styled, with_reconstruction
from afl.reporting.intervals import Estimate
from afl.reporting.names import METRICS
from afl.reporting.questions import gains
from afl.reporting.table import Table
from afl.tracking import names_afl

TAILS, HEADS = ("AP_r", "AP_c"), ("AP_f", "AP_c")


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
    """A point for each loss with its 95 % intervals: the head to the right, the tail up, the baseline where the lines cross.

    Raises:
        ValueError: as ``trades``.
    """
    tail, head, points = trades(table)
    with styled():
        figure = Figure(figsize=(5.2, 4.4))
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
    """Write each name at its point, in the first place around it that covers no point, no interval and no other name."""
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
    places = [(x, y) for far in (3, 9, 16, 25, 36) for y in (far, -far, 0) for x in (3, -3, 30, -30)]
    for loss, (high, right) in points.items():
        point = 100 * right.mean, 100 * high.mean
        best: Annotation | None = None
        least = len(taken) + 1
        for x, y in places:
            text = axis.annotate(
                loss.rsplit("/", 1)[-1], point, xytext=(x, y), textcoords="offset points", fontsize=6,
                ha="left" if x > 0 else "right", va="center" if y == 0 else "bottom" if y > 0 else "top",
                arrowprops={"arrowstyle": "-", "linewidth": 0.3, "color": GREY} if max(abs(x), abs(y)) > 3 else None,
            )  # fmt: skip
            box = text.get_window_extent()
            outside = box.x0 < axis.bbox.x0 or box.x1 > axis.bbox.x1
            covered = box.count_overlaps(taken) + len(taken) * outside
            worse: Annotation | None = text
            if covered < least:
                worse, best, least = best, text, covered
            if worse:
                worse.remove()
            if not least:
                break
        taken.append(best.get_window_extent())
