"""One chart of a page: matplotlib draws it, the page colours it, and each mark has a tooltip.

Colours are names of ``PALETTE``. The SVG refers to them as CSS variables, so that one drawing serves a light and a dark page.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from xml.etree import ElementTree

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator

# Light and dark. s0 to s7 tell losses apart, sx is for further losses; r, c and f are frequency groups.
PALETTE = {
    "paper": ("#ffffff", "#12161d"), "ink": ("#1d2330", "#e6e9ef"), "soft": ("#5d6678", "#9aa5b6"),
    "rule": ("#dfe3ea", "#2c3440"), "grid": ("#e7eaf0", "#262e39"),
    "s0": ("#5d6677", "#a7b0bf"), "s1": ("#0072b2", "#56b4e9"), "s2": ("#d55e00", "#f2894a"),
    "s3": ("#009e73", "#3cc9a0"), "s4": ("#b0579b", "#e09ac6"), "s5": ("#b8860b", "#e5c04a"),
    "s6": ("#3aa0d8", "#9fd3f2"), "s7": ("#8c3b2a", "#e07a63"), "sx": ("#8b94a4", "#77839a"),
    "r": ("#d55e00", "#f2894a"), "c": ("#009e73", "#3cc9a0"), "f": ("#0072b2", "#56b4e9"),
}  # fmt: skip
VARIABLES = {light: f"var(--{name})" for name, (light, _) in PALETTE.items()}
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 26, 36  # margins in pixels
LETTER = 6.8  # pixels of a letter in the widest of the page's fonts
ROW = 24  # pixels of a row of dots or of a stacked bar


def paint(name: str) -> str:
    """The colour that becomes the page's variable ``--name``."""
    return PALETTE[name][0]


STYLE = {
    "font.size": 11, "svg.fonttype": "none", "axes.axisbelow": True,
    "axes.spines.left": False, "axes.spines.right": False, "axes.spines.top": False,
    "axes.edgecolor": paint("rule"), "axes.labelcolor": paint("soft"), "xtick.color": paint("soft"), "ytick.color": paint("soft"),
    "xtick.major.size": 0, "ytick.major.size": 0, "xtick.minor.size": 0, "ytick.minor.size": 0,
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": paint("grid"), "grid.linewidth": 1,
}  # fmt: skip


class Chart:
    """A frame with a title; ``axis`` is matplotlib's, for everything that the methods do not draw.

    Args:
        title: on the left above the frame. y_label: on the right above it. x_label: below it.
        width, height: in pixels of a page whose column is as wide as the chart.
        left: margin in pixels.
    """

    def __init__(
        self,
        title: str,
        x_label: str = "",
        y_label: str = "",
        width: int = 330,
        height: int = 230,
        left: float = LEFT,
    ) -> None:
        self.title, self.width = title, width
        self._notes: dict[str, tuple[str, Sequence[str]]] = {}
        with matplotlib.rc_context(STYLE):
            self.figure = Figure(figsize=(width / 72, height / 72))
            self.figure.subplots_adjust(left / width, BOTTOM / height, 1 - RIGHT / width, 1 - TOP / height)
            self.axis = self.figure.subplots()
        self.figure.patch.set_visible(False)
        self.axis.patch.set_visible(False)
        for text, x, side, size in ((title, 0, "left", 13), (y_label, width - RIGHT, "right", 11)):
            weight, color = ("bold", "ink") if side == "left" else ("normal", "soft")
            self.figure.text(
                x / width,
                1 - 14 / height,
                _plain(text),
                ha=side,
                size=size,
                weight=weight,
                color=paint(color),
            )
        self.axis.set_xlabel(_plain(x_label))

    def span(self, axis: str, low: float, high: float, log: bool = False) -> None:
        """Set the ends of the axis ``x`` or ``y``, with ticks at 1, 2 and 5 times powers of ten."""
        own = getattr(self.axis, f"{axis}axis")
        even = MaxNLocator(5, steps=(1, 2, 5, 10))
        if log:
            getattr(self.axis, f"set_{axis}scale")("log")
            self.axis.minorticks_off()
        if not log or high / low < 5:
            own.set_major_locator(FixedLocator(even.tick_values(low, high)) if log else even)
        else:
            own.set_major_locator(LogLocator(subs=(1, 2, 5)) if high / low < 100 else LogLocator(numticks=7))
        own.set_major_formatter("{x:g}")
        getattr(self.axis, f"set_{axis}lim")(low, high)

    def ticks(self, axis: str, values: Sequence[float], names: Sequence[str], color: str = "soft") -> None:
        """Names instead of numbers along an axis."""
        getattr(self.axis, f"set_{axis}ticks")(values, [_plain(name) for name in names], color=paint(color))

    def points(
        self,
        x: Sequence[float],
        y: Sequence[float | None],
        color: str,
        notes: str | Sequence[str],
        marker: str = "",
        line: str = "",
        **looks: object,
    ) -> None:
        """A series inside the frame; None is a gap.

        Args:
            notes: the tooltip of the whole line, or of each point.
            marker: ``dot``, ``ring`` or nothing.
            line: matplotlib's line style, or nothing.
        """
        looks = {"color": paint(color), "linewidth": 1.8, "markersize": 6, "clip_on": False} | looks
        if marker == "ring":
            looks |= {"markerfacecolor": paint("paper"), "markeredgewidth": 1.4}
        (drawn,) = self.axis.plot(
            x,
            np.array(y, float),
            linestyle=line or "none",
            marker="o" if marker else "",
            **({"markeredgewidth": 0} | looks),
        )
        if isinstance(notes, str):
            self._note(drawn, [notes], "line")
        else:
            self._note(drawn, [note for note, value in zip(notes, y, strict=True) if value is not None])

    def bars(self, bars: Iterable[Artist], notes: Sequence[str]) -> None:
        """Give each of matplotlib's bars its tooltip."""
        for bar, note in zip(bars, notes, strict=True):
            self._note(bar, [note])

    def write(self, x: float, y: float, text: str) -> None:
        """Write upwards from a point, with an outline in the colour of the paper."""
        written = self.axis.text(
            x,
            y,
            _plain(text),
            rotation=90,
            rotation_mode="anchor",
            va="center",
            size=10.5,
            color=paint("ink"),
        )
        self._note(written, [], "onbar")

    def _note(self, artist: Artist, notes: Sequence[str], kind: str = "") -> None:
        name = f"noted{len(self._notes)}"
        artist.set_gid(name)
        self._notes[name] = (kind, notes)

    def svg(self) -> Markup:
        """The chart as an element of a page. The same chart gives the same text."""
        buffer = io.BytesIO()
        with matplotlib.rc_context(STYLE | {"svg.hashsalt": "afl"}):
            self.figure.savefig(
                buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
            )
        text = buffer.getvalue()
        root = ElementTree.fromstring(text)
        prefix = f"c{hashlib.sha256(text + self.title.encode()).hexdigest()[:8]}"
        kept = set(re.findall(r'url\(#(\w+)\)|href="#(\w+)"', text.decode()))
        referenced = {name for pair in kept for name in pair if name}
        for node in root.iter():
            self._finish(node, referenced, prefix)
        root.attrib = {
            "class": "chart",
            "viewBox": root.attrib["viewBox"],
            "role": "img",
            "aria-label": self.title,
        }
        return Markup(ElementTree.tostring(root, encoding="unicode"))

    def _finish(self, node: ElementTree.Element, referenced: set[str], prefix: str) -> None:
        """Turn a node of a file into one of a page: no namespaces, unique ids, CSS variables, tooltips."""
        node.tag = node.tag.rsplit("}", 1)[-1]
        for name in list(node.attrib):
            value = node.attrib.pop(name)
            name = name.rsplit("}", 1)[-1]
            if name == "id":
                if value in self._notes:
                    self._add_titles(node, *self._notes[value])
                if value not in referenced:
                    continue
                value = prefix + value
            elif name == "href":
                value = f"#{prefix}{value[1:]}"
            elif name == "clip-path":
                value = value.replace("#", f"#{prefix}")
            elif name == "style":
                value = re.sub(r"#[0-9a-f]{6}", lambda found: VARIABLES.get(found[0], found[0]), value)
                value = re.sub(r"font: (\w+ )?([\d.]+)px [^;]*", r"font: \1\2px var(--font)", value)
            node.set(name, value)

    @staticmethod
    def _add_titles(node: ElementTree.Element, kind: str, notes: Sequence[str]) -> None:
        marks = [own for own in node.iter() if own.tag.rsplit("}", 1)[-1] == "use"]
        if kind:
            node.set("class", kind)
        for mark, note in zip(marks if marks and not kind else [node][: len(notes)], notes, strict=True):
            title = ElementTree.Element("title")
            title.text = note
            mark.insert(0, title)


def dot_rows(title: str, names: Sequence[str], low: float, high: float, label: str) -> Chart:
    """A chart of named rows, the first on top; row i has the height i on its y axis."""
    chart = _rows(title, names, 420, BOTTOM)
    chart.axis.set_xlabel(_plain(label))
    chart.span("x", low, high)
    chart.axis.grid(axis="x")
    chart.axis.axvline(0, color=paint("soft"), linewidth=1, zorder=1)
    return chart


def stacked_bars(title: str, rows: Sequence[tuple[str, Sequence[tuple[str, float, str, float]]]]) -> Chart:
    """Named rows, each a bar of parts (colour, opacity, tooltip, share) whose shares add up to 1."""
    chart = _rows(title, [name for name, _ in rows], 330, 22)
    for place, (_, parts) in enumerate(rows):
        start = 0.0
        for color, opacity, note, share in parts:
            drawn = chart.axis.barh(place, share, 0.7, start, color=paint(color), alpha=opacity)
            chart.bars(drawn, [note])
            start += share
    chart.ticks("x", [0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    chart.axis.set_xlim(0, 1)
    return chart


def _rows(title: str, names: Sequence[str], width: int, bottom: int) -> Chart:
    left = max(104.0, LETTER * max(map(len, names), default=0) + 12)
    height = TOP + ROW * len(names) + bottom
    chart = Chart(title, width=width, height=height, left=left)
    chart.figure.subplots_adjust(bottom=bottom / height)
    chart.axis.spines[:].set_visible(False)
    chart.axis.grid(axis="y", visible=False)
    chart.ticks("y", range(len(names)), names, color="ink")
    chart.axis.tick_params(axis="y", labelsize=12)
    chart.axis.set_ylim(len(names) - 0.5, -0.5)
    return chart


def extent(values: Sequence[float], room: float = 0.06) -> tuple[float, float]:
    """Smallest and largest of the values with some room around; (0, 1) without values."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    margin = (high - low) * room or abs(high) * room or 1.0
    return low - margin, high + margin


def _plain(text: str) -> str:
    """Escape dollar signs, which would start a formula."""
    return text.replace("$", r"\$")
