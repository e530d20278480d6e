"""The style of figures, and their files."""

from __future__ import annotations

import io
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path

import matplotlib.style
from matplotlib.figure import Figure

from afl.tracking import names_afl, write_bytes

WIDTH, FULL_WIDTH = 3.5, 7.16  # inches: one column, and both columns of a page
# Okabe and Ito's palette, black first, without its yellow, which is too light for a line.
BLACK, BLUE, ORANGE, GREEN, PURPLE, SKY, RED = (
    "#000000", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00",
)  # fmt: skip
GREY = "#666666"
GROUP_COLORS = {"r": RED, "c": GREEN, "f": BLUE}
RECONSTRUCTION = "AFL: a reconstruction"
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "figure.titlesize": 8,
    "legend.fontsize": 7, "legend.title_fontsize": 7, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "axes.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.linewidth": 0.4, "grid.color": "#D9D9D9", "lines.linewidth": 1.2,
    "legend.frameon": False, "legend.handlelength": 2.2, "figure.constrained_layout.use": True,
    "savefig.dpi": 300, "pdf.fonttype": 42,
}  # fmt: skip
# Without dates and versions, so that the same figure gives the same file.
FORMATS = {
    "png": {"metadata": {"Software": None}},
    "pdf": {"metadata": {"CreationDate": None, "Producer": None, "Creator": None}},
    "jpg": {"dpi": 220, "pil_kwargs": {"quality": 85}},
}


def styled() -> AbstractContextManager:
    """The context for drawing a figure, independent of the user's matplotlib style."""
    return matplotlib.style.context(["default", STYLE])


def save(figure: Figure, folder: str | Path, name: str) -> list[Path]:
    """Write ``name.png`` and ``name.pdf``; returns their paths."""
    paths = [Path(folder) / f"{name}.{kind}" for kind in ("png", "pdf")]
    for path in paths:
        save_as(figure, path)
    return paths


def save_as(figure: Figure, path: Path) -> None:
    """Write a file of one of ``FORMATS``, chosen by its suffix."""
    buffer, kind = io.BytesIO(), path.suffix[1:]
    with styled():
        figure.savefig(buffer, format=kind, **FORMATS[kind])
    write_bytes(path, buffer.getvalue())


def with_reconstruction(title: str, losses: Iterable[str]) -> str:
    """The title, with a note that AFL is a reconstruction if one of the losses is a form of it."""
    return f"{title} ({RECONSTRUCTION})" if any(map(names_afl, losses)) else title
