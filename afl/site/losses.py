"""A page with every loss: what it computes, a picture of its gradient, and its row in the tables."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

from afl.losses import MapInfo, MapLoss
from afl.reporting.figures import (
    EXAMPLE_OVERLAP,
    RECONSTRUCTION,
    Curve,
    draw_gradients,
    draw_gradients_in_a_map,
    map_curves,
)

TABLES = ("shapes", "sampling", "ablation")
METRICS = ("AP", "AP_r", "AP_c", "AP_f")
HEAD = f"""# Every loss

`loss=NAME` chooses a loss on all six detectors. The pictures show the size of the gradient of one element of a rare class
against its probability, in a map of a frequent and a rare class, before the first step. Class weights are at their cap of 5, and
losses that look at boxes see an overlap of {EXAMPLE_OVERLAP}. Where an element's gradient depends on the rest of its map, the picture shows
means over one map, beside cross-entropy. Grey: focal loss.

The figures are averages over the detectors of the table that they come from, x 100. Compare figures of one table only.
AFL here is a reconstruction: the paper's formula is not public.

"""


def losses_page(
    losses: Mapping[str, Callable[[MapInfo], MapLoss]], conf: Path, results: Path, pictures: Path
) -> str:
    """The page; the pictures of the losses are written to the folder ``pictures`` beside it.

    Args:
        losses: factories by their names in ``conf/loss``, in the order of the page.
        conf: the folder of the configuration; ``results``: that of the tables.
    """
    pictures.mkdir(parents=True, exist_ok=True)
    rows = {table: averages(results / table / "table.md") for table in TABLES}
    plain = _curve("fl", losses["fl"], "#888888", ":")
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
        own = [(table, rows[table][name]) for table in TABLES if name in rows[table]]
        if own:
            lines += ["", "| table | " + " | ".join(METRICS) + " |", "| --- |" + " ---: |" * len(METRICS)]
            lines += [
                f"| [{table}](../results/{table}/table.md) | "
                + " | ".join(found.get(m, "–") for m in METRICS)
                + " |"
                for table, found in own
            ]
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


def _picture(name: str, loss: Callable[[MapInfo], MapLoss], plain: Curve):
    """The figure of a loss; None where it is not defined on the example's map."""
    title = f"{name} ({RECONSTRUCTION})" if "afl" in name else name
    try:
        curve = _curve(name, loss, "#0072b2", "-")
        if curve is None:
            return draw_gradients_in_a_map({name: loss})
    except ValueError:
        return None
    return draw_gradients([plain, curve] if name != "fl" else [curve], title)


def _curve(name: str, loss: Callable[[MapInfo], MapLoss], color: str, line: str) -> Curve | None:
    pair = map_curves(loss)
    return None if pair is None else Curve(name, *pair, color, line)
