"""Tables of ``results/`` inside documents. They are written between two marks, so that no figure is copied by hand.

<!-- table shapes AP AP_r -->      the blocks of these metrics of results/shapes/table.md
<!-- average shapes AP AP_f -->    the average row of each of these metrics, as one table
<!-- caption shapes -->            its caption and notes
<!-- file search/choice.md -->     results/search/choice.md, without the note that AFL is a reconstruction, which the document says itself
...
<!-- end -->

Rows of several files of contrasts (``report contrast``) make one table. Each line has a label, a file and a contrast of that file:

<!-- contrasts AP AP_r AP_f
AFL minus FL = shapes/afl-contrasts.md: afl - fl
-->
...
<!-- end -->
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from afl.tracking import RECONSTRUCTION

MARKED = re.compile(
    r"<!-- (?:(?P<kind>table|average|caption|file) (?P<name>\S+)(?P<metrics>(?: \S+)*) |"
    r"contrasts (?P<columns>[^\n]+)\n(?P<rows>(?:[^\n]+ = [^\n]+\n)+))-->\n.*?<!-- end -->",
    re.S,
)
_HEADING = re.compile(r"^\*\*(?P<dataset>[^*]+): (?P<metric>[^*]+)\*\*\n\n(?P<rows>(?:\|.*\n?)+)", re.M)


def refreshed(text: str, results: Path, folder: Path) -> str:
    """``text`` with everything between marks taken from the current tables in ``results``.

    Args:
        folder: of the document; links start from it.

    Raises:
        FileNotFoundError: a mark names a table or file that does not exist.
        ValueError: a mark asks for a metric that its table does not have, or a contrast that its file does not have.
    """

    def replaced(mark: re.Match) -> str:
        if mark["columns"]:
            inside = _contrasts(mark["columns"].split(), mark["rows"].splitlines(), results, folder)
        else:
            inside = _inside(mark["kind"], mark["name"], mark["metrics"].split(), results)
        start = mark[0][: mark[0].index("-->")]
        return f"{start}-->\n\n{inside}\n\n<!-- end -->"

    return MARKED.sub(replaced, text)


def _inside(kind: str, name: str, metrics: list[str], results: Path) -> str:
    if kind == "file":
        return (results / name).read_text(encoding="utf-8").removesuffix(f"\n{RECONSTRUCTION}.\n").strip()
    path = results / name / "table.md"
    table = path.read_text(encoding="utf-8")
    if kind == "average":
        return _averages(table, metrics, path)
    if kind == "caption":
        return table[: _HEADING.search(table).start()].strip()
    return "\n\n".join(_block(table, metric, path) for metric in metrics)


def _contrasts(metrics: list[str], rows: list[str], results: Path, folder: Path) -> str:
    """One row per contrast: the mean difference of each metric with the half-widths of its three intervals."""
    lines = [f"| | {' | '.join(metrics)} |", f"| --- |{' ---: |' * len(metrics)}"]
    for row in rows:
        label, _, source = row.partition(" = ")
        name, _, contrast = source.partition(": ")
        found = {}
        for own, metric, mean, _, *widths in (line[:7] for line in _rows(results / name) if len(line) == 9):
            if own.removesuffix(" (best other)") == contrast:
                half_widths = ", ".join(map(_half_width, widths))
                found[metric] = mean if widths[0] == "—" else f"{mean} (± {half_widths})"
        if not found:
            raise ValueError(f"{results / name} has no contrast {contrast!r}")
        link = os.path.relpath(results / name, folder)
        lines.append(f"| [{label}]({link}) | {' | '.join(found.get(metric, '—') for metric in metrics)} |")
    return "\n".join(lines)


def _half_width(cell: str) -> str:
    """``**± 1.8** (2)`` without the sign and the degrees of freedom."""
    return re.sub(r"± | \(.*", "", cell)


def _rows(path: Path) -> list[list[str]]:
    """The cells of a file's rows."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def _averages(table: str, metrics: list[str], path: Path) -> str:
    """The head of a table and, for each metric, its average row with the metric's name in front."""
    rows: list[str] = []
    for metric in metrics:
        head, line, *rest = _block(table, metric, path).splitlines()[2:]
        average = next((row for row in rest if row.startswith("| average |")), None)
        if average is None:
            raise ValueError(f"{path} has one detector, so no average of {metric}")
        rows += [] if rows else [head, line]
        rows.append(average.replace("| average |", f"| {metric} |", 1))
    return "\n".join(rows)


def _block(table: str, metric: str, path: Path) -> str:
    for found in _HEADING.finditer(table):
        if found["metric"] == metric:
            return f"**{metric}**\n\n{found['rows'].strip()}"
    raise ValueError(f"{path} has no table of {metric}")
