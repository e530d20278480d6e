"""A table of the report: differences to the baseline as dots, then every metric in figures."""

from __future__ import annotations

from typing import Any

from afl.reporting.frame import AVERAGE
from afl.reporting.names import METRICS, detector_name, percent
from afl.reporting.pages.chart import Chart, dot_rows, extent
from afl.reporting.pages.material import styles
from afl.reporting.pages.page import Section
from afl.reporting.render import ABSENT, FAILED, UNDEFINED, hole
from afl.reporting.table import Block, Entry, Table

WORDS = {UNDEFINED: "undefined", FAILED: "failed", ABSENT: "not run"}
STRONGEST = 10.0  # differences of this size, in points of AP, have the strongest tint


def results_section(found: Table) -> Section:
    """One table."""
    spec = found.spec
    several = len(spec.datasets) > 1
    sure = [
        difference.positive or difference.negative
        for block in found.blocks
        for row, entries in block.rows.items()
        for difference in (entry.difference for entry in entries.values())
        if row != AVERAGE and difference is not None and difference.half is not None
    ]
    baseline = spec.baseline if len(spec.losses) > 1 else None
    content = {
        "baseline": baseline,
        "losses": spec.losses,
        "units": max(len(spec.units(dataset)) for dataset in spec.datasets),
        "repeated": "units" if spec.variants else "seeds",
        "sure": sum(sure),
        "compared": len(sure),
        "differences": [_differences(block, found, several) for block in found.blocks] if baseline else [],
        "blocks": {_heading(block, several): _rows(block, found) for block in found.blocks},
        "notes": found.notes,
    }
    title = spec.title or spec.name
    return Section(f"results-{spec.name}", title, spec.label or title, "results.html.j2", content)


def _heading(block: Block, several: bool) -> str:
    name = METRICS.get(block.metric, block.metric)
    return f"{name} · {block.dataset}" if several else name


def _differences(block: Block, found: Table, several: bool) -> Chart:
    style = styles(found.spec)
    losses = [loss for loss in found.spec.losses if loss != found.spec.baseline]
    own = {
        (row, loss): difference
        for row, entries in block.rows.items()
        for loss in losses
        if (difference := entries[loss].difference) is not None
    }
    low, high = extent([*(100 * one.mean for one in own.values()), 0.0, 1.0, -1.0])
    chart = dot_rows(_heading(block, several), losses, low, high, f"points of {block.metric}")
    for (row, loss), difference in own.items():
        mean, place = 100 * difference.mean, losses.index(loss)
        note = f"{detector_name(row)}, {loss}: {percent(difference.mean, True)}"
        if difference.half is not None:
            half = 100 * difference.half
            note += f" ± {half:.1f}"
            if row == AVERAGE:
                ends = max(mean - half, low), min(mean + half, high)
                chart.points(ends, (place, place), "ink", note, line="-", linewidth=2, zorder=3)
        looks = {"markersize": 10, "zorder": 4} if row == AVERAGE else {"alpha": 0.65}
        chart.points([mean], [place], "ink" if row == AVERAGE else style[loss], [note], "dot", **looks)
    return chart


def _rows(block: Block, found: Table) -> list[dict[str, Any]]:
    return [
        {
            "name": name if name == AVERAGE else detector_name(name),
            "average": name == AVERAGE,
            "cells": [_cell(entries[loss]) for loss in found.spec.losses],
        }
        for name, entries in block.rows.items()
    ]


def _cell(entry: Entry) -> dict[str, Any]:
    """The parts of an entry that the template writes."""
    if entry.value is None:
        return {"word": WORDS[hole(entry)]}
    cell = {
        "word": "",
        "value": percent(entry.value.mean),
        "half": _half(entry.value.half) + entry.coverage,
        "difference": None,
    }
    if entry.difference is None:
        return cell
    own = entry.difference
    kinds = ["sure"] * (own.positive or own.negative) + ["best"] * entry.best
    return cell | {
        "difference": percent(own.mean, True) + _half(own.half),
        "tint": "gain" if own.mean > 0 else "loss",
        "strength": f"{0.32 * min(abs(100 * own.mean) / STRONGEST, 1.0):.2f}",
        "kinds": " ".join(kinds),
    }


def _half(half: float | None) -> str:
    return "" if half is None else f" ± {100 * half:.1f}"
