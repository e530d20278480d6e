"""Charts as SVG text for a page: letters and lines take the page's colours, so that one drawing serves a light and a dark page.

Series are told apart by the classes ``s0`` to ``s7`` (``sx`` for the rest), which the page's style sheet gives colours; every
mark says its value in a ``<title>``, which browsers show as a tooltip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

LEFT, RIGHT, TOP, BOTTOM = 44, 12, 26, 36
LETTER = 6.8  # pixels of a letter of a row's name, with the widest of the page's fonts


@dataclass(frozen=True)
class Axis:
    """One side of a chart.

    Attributes:
        low, high: ends, low < high; both above 0 on a logarithmic axis.
        label: what is shown, with its unit.
        log: logarithmic.
        ticks: (value, text); None: chosen.
    """

    low: float
    high: float
    label: str = ""
    log: bool = False
    ticks: Sequence[tuple[float, str]] | None = None

    def place(self, value: float, start: float, end: float) -> float:
        """Where ``value`` stands between the pixels ``start`` (of ``low``) and ``end`` (of ``high``)."""
        low, high = (math.log(v) if self.log else v for v in (self.low, self.high))
        at = math.log(max(value, self.low)) if self.log else value
        return start + (at - low) / (high - low) * (end - start)

    def marks(self) -> Sequence[tuple[float, str]]:
        """Ticks inside the axis."""
        if self.ticks is not None:
            return self.ticks
        return log_ticks(self.low, self.high) if self.log else even_ticks(self.low, self.high)


@dataclass(frozen=True)
class Series:
    """Points (x, y) of one kind; None in ``y`` is a gap.

    Attributes:
        name: for tooltips. style: class of its colour.
        x, y: of equal length.
        line, dots: what is drawn.
        hollow: dots as rings.
        dashed: a broken line.
        notes: tooltip of each point; empty: name and value.
    """

    name: str
    style: str
    x: Sequence[float]
    y: Sequence[float | None]
    line: bool = True
    dots: bool = False
    hollow: bool = False
    dashed: bool = False
    notes: Sequence[str] = field(default_factory=tuple)


def even_ticks(low: float, high: float, about: int = 5) -> list[tuple[float, str]]:
    """Multiples of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if raw <= power * factor * 1.0001)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(k * step, f"{k * step:g}") for k in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Powers of ten, over less than two of them with every 2 and 5 between; of many, every other."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if high / low < 100 else (1,)
    values = [10.0**p * f for p in powers for f in factors if low * 0.999 <= 10.0**p * f <= high * 1.001]
    return [(value, f"{value:g}") for value in values[:: 2 if len(values) > 7 else 1]]


def extent(values: Sequence[float], room: float = 0.06) -> tuple[float, float]:
    """Smallest and largest of the values with some room around; (0, 1) without values."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    margin = (high - low) * room or abs(high) * room or 1.0
    return low - margin, high + margin


def chart(
    title: str,
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    *,
    width: int = 330,
    height: int = 230,
    extra: str = "",
) -> str:
    """Lines and dots in one frame.

    Args:
        extra: SVG that is drawn below the series, in pixels of the chart.
    """
    inside = (LEFT, width - RIGHT, height - BOTTOM, TOP)
    parts = [_frame(title, x, y, width, height), extra]
    for one in series:
        points = [
            (x.place(a, inside[0], inside[1]), y.place(b, inside[2], inside[3]), i)
            for i, (a, b) in enumerate(zip(one.x, one.y, strict=True))
            if b is not None and not (y.log and b <= 0)
        ]
        kept = {i for *_, i in points}
        if one.line and points:
            path, pen_down = [], False
            for px, py, i in points:
                path.append(f"{'L' if pen_down and i - 1 in kept else 'M'}{px:.1f} {py:.1f}")
                pen_down = True
            dash = ' stroke-dasharray="5 3"' if one.dashed else ""
            parts.append(
                f'<path class="{one.style} line" d="{"".join(path)}"{dash}><title>{escape(one.name)}</title></path>'
            )
        if one.dots:
            for px, py, i in points:
                note = one.notes[i] if one.notes else f"{one.name}: {one.y[i]:.3g}"
                kind = "ring" if one.hollow else "dot"
                parts.append(
                    f'<circle class="{one.style} {kind}" cx="{px:.1f}" cy="{py:.1f}" r="3">'
                    f"<title>{escape(note)}</title></circle>"
                )
    return _svg(width, height, title, parts)


@dataclass(frozen=True)
class Mark:
    """One dot of :func:`dot_rows`: where, how sure (half-width of an interval), how it looks and what it says."""

    value: float
    style: str
    note: str
    half: float | None = None
    main: bool = False


def dot_rows(
    title: str,
    rows: Sequence[tuple[str, Sequence[Mark]]],
    x: Axis,
    *,
    width: int = 330,
) -> str:
    """Named rows of dots over one axis, 0 marked; main dots are larger and stand on top."""
    height = TOP + 24 * len(rows) + BOTTOM
    start, end = _label_width([name for name, _ in rows]), width - RIGHT
    parts = [f'<text class="title" x="0" y="14">{escape(title)}</text>']
    for value, text in x.marks():
        px = x.place(value, start, end)
        zero = " zero" if value == 0 else ""
        parts.append(
            f'<line class="grid{zero}" x1="{px:.1f}" x2="{px:.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>'
            f'<text class="tick" x="{px:.1f}" y="{height - BOTTOM + 14}" text-anchor="middle">{escape(text)}</text>'
        )
    parts.append(
        f'<text class="label" x="{(start + end) / 2:.0f}" y="{height - 4}" text-anchor="middle">{escape(x.label)}</text>'
    )
    for number, (name, marks) in enumerate(rows):
        py = TOP + 24 * number + 12
        parts.append(
            f'<text class="row" x="{start - 8}" y="{py + 4}" text-anchor="end">{escape(name)}</text>'
        )
        for mark in sorted(marks, key=lambda mark: mark.main):
            px = x.place(mark.value, start, end)
            if mark.half is not None and mark.main:
                a, b = (
                    x.place(min(max(mark.value + s * mark.half, x.low), x.high), start, end) for s in (-1, 1)
                )
                parts.append(
                    f'<line class="{mark.style} whisker" x1="{a:.1f}" x2="{b:.1f}" y1="{py}" y2="{py}"/>'
                )
            parts.append(
                f'<circle class="{mark.style} {"dot main" if mark.main else "dot faint"}" cx="{px:.1f}" cy="{py}" '
                f'r="{5 if mark.main else 3.2}"><title>{escape(mark.note)}</title></circle>'
            )
    return _svg(width, height, title, parts)


def stacked_bars(
    title: str,
    rows: Sequence[tuple[str, Sequence[tuple[str, str, float]]]],
    *,
    width: int = 330,
) -> str:
    """Named rows, each a bar of parts (class, tooltip, share) that add up to 1."""
    height = TOP + 24 * len(rows) + 22
    start = _label_width([name for name, _ in rows])
    length = width - RIGHT - start
    parts = [f'<text class="title" x="0" y="14">{escape(title)}</text>']
    for number, (name, shares) in enumerate(rows):
        py, at = TOP + 24 * number, float(start)
        parts.append(
            f'<text class="row" x="{start - 8}" y="{py + 14}" text-anchor="end">{escape(name)}</text>'
        )
        for style, note, share in shares:
            parts.append(
                f'<rect class="{style} bar" x="{at:.2f}" y="{py + 2}" width="{share * length:.2f}" height="17">'
                f"<title>{escape(note)}</title></rect>"
            )
            at += share * length
    for k in range(0, 101, 25):
        px = start + k / 100 * length
        parts.append(f'<text class="tick" x="{px:.0f}" y="{height - 6}" text-anchor="middle">{k} %</text>')
    return _svg(width, height, title, parts)


def bars(
    title: str,
    values: Sequence[tuple[str, str, float]],
    y: Axis,
    *,
    width: int = 660,
    height: int = 260,
    x_label: str = "",
    names: Sequence[str] = (),
) -> str:
    """Upright bars (class, tooltip, value) side by side from the axis' low end.

    Args:
        names: of the bars, written upwards along each; none for bars without names.
    """
    frame = Axis(0, 1, label=x_label, ticks=())
    step = (width - LEFT - RIGHT) / max(len(values), 1)
    parts = [_frame(title, frame, y, width, height)]
    for i, (style, note, value) in enumerate(values):
        top = y.place(value, height - BOTTOM, TOP)
        parts.append(
            f'<rect class="{style} bar" x="{LEFT + i * step + 0.1 * step:.2f}" y="{top:.1f}" '
            f'width="{0.8 * step:.2f}" height="{max(height - BOTTOM - top, 0.5):.1f}"><title>{escape(note)}</title></rect>'
        )
    for i, name in enumerate(names):
        x = LEFT + (i + 0.5) * step + 4
        place = f'x="{x:.1f}" y="{height - BOTTOM - 5}" transform="rotate(-90 {x:.1f} {height - BOTTOM - 5})"'
        parts.append(f'<text class="onbar" {place}>{escape(name)}</text>')
    return _svg(width, height, title, parts)


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """(class, text) as a line of keys."""
    keys = "".join(f'<span><i class="{style} key"></i>{escape(text)}</span>' for style, text in entries)
    return f'<p class="legend">{keys}</p>'


def _label_width(names: Sequence[str]) -> float:
    """Room for the names of rows, which no browser measures beforehand."""
    return max(104.0, LETTER * max(map(len, names), default=0) + 12)


def _frame(title: str, x: Axis, y: Axis, width: int, height: int) -> str:
    right, bottom = width - RIGHT, height - BOTTOM
    parts = [f'<text class="title" x="0" y="14">{escape(title)}</text>']
    for value, text in y.marks():
        py = y.place(value, bottom, TOP)
        zero = " zero" if value == 0 and y.low < 0 else ""
        parts.append(
            f'<line class="grid{zero}" x1="{LEFT}" x2="{right}" y1="{py:.1f}" y2="{py:.1f}"/>'
            f'<text class="tick" x="{LEFT - 6}" y="{py + 3.5:.1f}" text-anchor="end">{escape(text)}</text>'
        )
    for value, text in x.marks():
        px = x.place(value, LEFT, right)
        parts.append(
            f'<text class="tick" x="{px:.1f}" y="{bottom + 14}" text-anchor="middle">{escape(text)}</text>'
        )
    middle = (LEFT + right) / 2
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(
        f'<text class="label" x="{middle:.0f}" y="{height - 5}" text-anchor="middle">{escape(x.label)}</text>'
    )
    if y.label:
        parts.append(f'<text class="label" x="{right}" y="14" text-anchor="end">{escape(y.label)}</text>')
    return "".join(parts)


def _svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )
