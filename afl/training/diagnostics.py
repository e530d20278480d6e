"""Precision-recall curves and confusion by frequency group of an evaluation, as a file and as charts."""

from __future__ import annotations

import json
from pathlib import Path

from afl.evaluation import BACKGROUND, GROUP_NAMES, Evaluator, confusion_by_group
from afl.evaluation.confusion import MIN_SCORE
from afl.tracking import Chart, write_json

PRECISION_COLUMNS = ("group", "recall", "precision")
CONFUSION_COLUMNS = ("there is", "found as", "number")
MOST_CLASSES = 50  # in a confusion chart by class


def write_diagnostics(path: Path, evaluator: Evaluator) -> None:
    """Write the data of the charts; call this after ``evaluator.evaluate()``.

    The file contains ``precision`` (101 numbers at recalls 0 to 1 and overlap 0.5, by group), ``confusion`` (rows ``r``, ``c``,
    ``f``, ``background`` by the group of the detection; empty without groups) and ``pairs`` (class name of the object or null,
    class name of the detection or null, number).
    """
    counts = evaluator.confusion()
    names = {BACKGROUND: None, **dict(enumerate(evaluator.truth.names))}
    content = {
        "precision": evaluator.precision,
        "confusion": confusion_by_group(counts, evaluator.groups) if evaluator.groups else {},
        "pairs": [[names[actual], names[found], number] for (actual, found), number in counts.items()],
    }
    write_json(path, content)


def diagnostic_charts(path: Path) -> dict[str, Chart]:
    """The charts of a file written by ``write_diagnostics``, by name."""
    content = json.loads(path.read_text(encoding="utf-8"))
    charts = {
        "precision_recall": Chart(
            kind="lines",
            title="Precision by recall at overlap 0.5",
            columns=PRECISION_COLUMNS,
            rows=[
                (GROUP_NAMES[group], i / (len(values) - 1), value)
                for group, values in content["precision"].items()
                for i, value in enumerate(values)
            ],
        )
    }
    if content["confusion"]:
        charts["confusion_groups"] = Chart(
            kind="confusion",
            title=f"Objects by group and the class of their detection (scores from {MIN_SCORE})",
            columns=CONFUSION_COLUMNS,
            rows=[
                (GROUP_NAMES.get(row, row), _found_as(column), number)
                for row, found in content["confusion"].items()
                for column, number in found.items()
            ],
        )
    classes = {name for pair in content["pairs"] for name in pair[:2] if name is not None}
    if 0 < len(classes) <= MOST_CLASSES:
        charts["confusion_classes"] = Chart(
            kind="confusion",
            title=f"Objects by class and the class of their detection (scores from {MIN_SCORE})",
            columns=CONFUSION_COLUMNS,
            rows=[(actual or "background", found or "nothing", n) for actual, found, n in content["pairs"]],
        )
    return charts


def _found_as(column: str) -> str:
    return f"another, {GROUP_NAMES[column]}" if column in GROUP_NAMES else column
