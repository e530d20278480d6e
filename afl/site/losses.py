"""A page with every loss: what it computes, a picture of its gradient, and its row in the tables."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from afl.losses import MapInfo, MapLoss
from afl.reporting.figures.curves import EXAMPLE_OVERLAP, LOGITS, MAP_BINS, gradients_in_a_map, map_curves
from afl.reporting.figures.style import BLUE, GREY, WIDTH, styled
from afl.reporting.markdown import markdown
from afl.tracking import RECONSTRUCTION, names_afl

Curves = tuple[np.ndarray, np.ndarray]
TABLES = ("shapes", "sampling", "ablation")
METRICS = ("AP", "AP_r", "AP_c", "AP_f")
HEAD = f"""# Every loss

`loss=NAME` chooses a loss on all six detectors. The pictures show the size of the gradient of one element of a rare class
against its probability, in a map of a frequent and a rare class, before the first step. Class weights are at their cap of 5, and
losses that look at boxes see an overlap of {EXAMPLE_OVERLAP}. Where an element's gradient depends on the rest of its map, the picture shows
means over one map on a logarithmic axis, where a missing part of a line has no gradient. Grey: focal loss, or cross-entropy in such
a map.

The figures are averages over the detectors of the table that they come from, x 100. Compare figures of one table only.
{RECONSTRUCTION}.

"""


def losses_page(
    losses: Mapping[str, Callable[[MapInfo], MapLoss]], conf: Path, results: Path, pictures: Path
) -> str:
    """The page. Writes the pictures of the losses to the folder ``pictures``.

    Args:
        losses: factories by their names in ``conf/loss``, in the order of the page.
        conf: the folder of the configuration; ``results``: that of the tables.
    """
    pictures.mkdir(parents=True, exist_ok=True)
    rows = {table: averages(results / table / "table.md") for table in TABLES}
    plain = map_curves(losses["fl"])
    sections = []
    for name, loss in losses.items():
        title, equation = description(conf / "loss" / f"{name}.yaml")
        file = f"{name.replace('/', '-')}.svg"
        drawn = _picture(name, loss, plain)
        lines = [f"## `{name}`", "", title]
        lines += ["", textwrap.indent(textwrap.fill(" ".join(equation), 84), "    ")] if equation else []
        if drawn is not None:
            drawn.savefig(pictures / file, format="svg", metadata={"Date": None})
            lines += [
                "",
                f"![Size of the gradient of {name} against the probability]({pictures.name}/{file})",
            ]
        own = [
            [f"[{table}](../results/{table}/table.md)", *(rows[table][name].get(m, "–") for m in METRICS)]
            for table in TABLES
            if name in rows[table]
        ]
        if own:
            lines += ["", markdown(["table", *METRICS], own)]
        sections.append("\n".join(lines))
    return HEAD + "\n\n".join(sections) + "\n"


def description(path: Path) -> tuple[str, list[str]]:
    """The first sentence of a loss's file, and the lines of its equation."""
    title, *rest = re.match(r"(?:#.*\n)+", path.read_text(encoding="utf-8"))[0].splitlines()
    return title.lstrip("# "), [line.lstrip("# ") for line in rest]


def averages(path: Path) -> dict[str, dict[str, str]]:
    """By loss and metric, the average over detectors in a ``table.md``, whose losses are rows or columns."""
    found: dict[str, dict[str, str]] = {}
    block = re.compile(r"^\*\*[^*]+: (?P<metric>[^*]+)\*\*\n\n(?P<rows>(?:\|.*\n?)+)", re.M)
    for match in block.finditer(path.read_text(encoding="utf-8")):
        lines = match["rows"].splitlines()
        table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
        # The first cell of the head is empty.
        head, body = table[0], table[2:]
        if head[-1] == "average":
            pairs = [(row[0], row[-1]) for row in body]
        else:
            pairs = [
                pair for row in body if row[0] == "average" for pair in zip(head[1:], row[1:], strict=True)
            ]
        for loss, value in pairs:
            found.setdefault(loss, {})[match["metric"]] = value
    return found


def _picture(name: str, loss: Callable[[MapInfo], MapLoss], plain: Curves) -> Figure | None:
    """The figure of a loss, with focal loss or cross-entropy in grey; None where the loss is not defined on the example's map."""
    p, other, line = LOGITS.sigmoid().numpy(), plain, "-"
    try:
        curves = map_curves(loss)
        in_a_map = curves is None
        if curves is None:
            p, line = (np.arange(MAP_BINS) + 0.5) / MAP_BINS, ".-"
            curves, other = gradients_in_a_map(loss), (1 - p, p)
    except ValueError:
        return None
    with styled():
        figure = Figure(figsize=(WIDTH, 1.8))
        axes = figure.subplots(1, 2)
        for axis, own, grey, side in zip(
            axes, curves, other, ("positive (y = 1)", "negative (y = 0)"), strict=True
        ):
            axis.plot(p, grey, color=GREY, linestyle=":")
            axis.plot(
                p, np.where(own > 0, own, np.nan) if in_a_map else own, line, color=BLUE, markersize=2.5
            )
            axis.set(title=side, xlabel="p", xlim=(0, 1), xticks=(0, 0.5, 1))
            if in_a_map:
                axis.set(yscale="log", ylim=(1e-6, 20), yticks=(1e-6, 1e-4, 1e-2, 1))
                axis.minorticks_off()
            else:
                axis.set_ylim(bottom=0)
        axes[0].set_ylabel("mean |∂L/∂z|" if in_a_map else "|∂L/∂z|")
        figure.suptitle(f"{name} (a reconstruction)" if names_afl(name) else name)
    return figure
