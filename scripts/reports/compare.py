"""The command that compares two runs."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from afl.reporting.compare import Comparison, comparison
from afl.reporting.figures.comparison import draw_comparison
from afl.reporting.figures.style import save
from afl.reporting.intervals import rounded
from scripts.reports.material import finished_record


def compare(*runs: str, output: str = "") -> list[Path]:
    """Two runs: the differences in their settings and in AP.

        python -m scripts.report compare outputs/ONE outputs/OTHER [output=FOLDER]

    Prints the differences of the configs and metrics, and draws the differences of AP as PNG and PDF in the folder of the second
    run.

    Raises:
        ValueError: the arguments are not two directories of finished runs.
    """
    if len(runs) != 2:
        raise ValueError("which two runs? python -m scripts.report compare outputs/ONE outputs/OTHER")
    first, second = (finished_record(Path(run)) for run in runs)
    found = comparison(first, second)
    show(found, Console(markup=False, highlight=False))
    folder = Path(output or Path(runs[1]).parent)
    paths = save(draw_comparison(found), folder, f"compare-{first.key}-{second.key}")
    print("written:", ", ".join(map(str, paths)))
    return paths


def show(found: Comparison, console: Console) -> None:
    """Print the tables. The console's markup is off, because names of classes and values may look like markup."""
    for text in found.warnings:
        console.print(text)
    console.print(f"first:  {found.first.key}\nsecond: {found.second.key}")
    changes = Table(title="Config", title_justify="left")
    changes.add_column("changed", no_wrap=True, overflow="fold")
    for name in ("first", "second"):
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
    return rounded(100 * one), rounded(100 * two), rounded(100 * (two - one), "+")
