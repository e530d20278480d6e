"""``python -m scripts.report compare RUN RUN [output=FOLDER]``: what was changed between two runs, and where AP moved."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from afl.reporting.compare import Comparison, compare, draw_comparison
from afl.reporting.figures import save
from scripts.entry import options_of
from scripts.run_material import finished_record

DEFAULTS = {"output": None}


def write_comparison(arguments: list[str]) -> list[Path]:
    """Print two tables and draw a picture; returns the pictures' paths.

    Raises:
        ValueError: not two directories of finished runs, or an unknown option.
    """
    runs = [a for a in arguments if "=" not in a]
    options = options_of([a for a in arguments if "=" in a], DEFAULTS)
    if len(runs) != 2:
        raise ValueError("which two runs? python -m scripts.report compare outputs/ONE outputs/OTHER")
    first, second = (finished_record(Path(run)) for run in runs)
    found = compare(first, second)
    show(found, Console())
    folder = Path(str(options["output"] or Path(runs[1]).parent))
    paths = save(draw_comparison(found), folder, f"compare-{first.key}-{second.key}")
    print("written:", ", ".join(map(str, paths)))
    return paths


def show(found: Comparison, console: Console) -> None:
    """The tables, for a terminal."""
    for text in found.warnings:
        console.print(text, highlight=False)
    console.print(f"first:  {found.first.key}\nsecond: {found.second.key}", highlight=False)
    changes = Table(title="Config", title_justify="left")
    for name in ("changed", "first", "second"):
        changes.add_column(name, overflow="fold")
    for name, one, two in found.changed:
        changes.add_row(name, *("–" if value is None else str(value) for value in (one, two)))
    console.print(changes)
    figures = Table("", "group", "first", "second", "points", title="AP, metrics x 100", title_justify="left")
    for name, one, two in found.metrics:
        figures.add_row(name, "", *_numbers(one, two))
    figures.add_section()
    for name, group, one, two in found.most_moved():
        figures.add_row(name, group, *_numbers(one, two))
    console.print(figures)


def _numbers(one: float, two: float) -> tuple[str, str, str]:
    return f"{100 * one:.1f}", f"{100 * two:.1f}", f"{100 * (two - one):+.1f}"
