"""Tables of ``results/`` inside documents. They are written between two marks, so that no figure is copied by hand.

<!-- table shapes AP AP_r -->      the blocks of these metrics of results/shapes/table.md
<!-- average shapes AP AP_f -->    the average row of each of these metrics, as one table
<!-- caption shapes -->            its caption and notes
<!-- file search/choice.md -->     results/search/choice.md, without the note that AFL is a reconstruction, which the document says itself
...
<!-- end -->
"""

from __future__ import annotations

import re
from pathlib import Path

from afl.tracking import RECONSTRUCTION

MARKED = re.compile(r"<!-- (table|average|caption|file) (\S+)((?: \S+)*) -->\n.*?<!-- end -->", re.S)
_HEADING = re.compile(r"^\*\*(?P<dataset>[^*]+): (?P<metric>[^*]+)\*\*\n\n(?P<rows>(?:\|.*\n?)+)", re.M)


def refreshed(text: str, results: Path) -> str:
    """``text`` with everything between marks taken from the current tables in ``results``.

    Raises:
        FileNotFoundError: a mark names a table or file that does not exist.
        ValueError: a mark asks for a metric that its table does not have.
    """

    def replaced(mark: re.Match) -> str:
        kind, name, metrics = mark[1], mark[2], mark[3].split()
        start = " ".join(["<!--", kind, name, *metrics, "-->"])
        if kind == "file":
            inside = (
                (results / name).read_text(encoding="utf-8").removesuffix(f"\n{RECONSTRUCTION}.\n").strip()
            )
            return f"{start}\n\n{inside}\n\n<!-- end -->"
        path = results / name / "table.md"
        table = path.read_text(encoding="utf-8")
        if kind == "average":
            inside = _averages(table, metrics, path)
        elif kind == "caption":
            inside = table[: _HEADING.search(table).start()].strip()
        else:
            inside = "\n\n".join(_block(table, metric, path) for metric in metrics)
        return f"{start}\n\n{inside}\n\n<!-- end -->"

    return MARKED.sub(replaced, text)


def _averages(table: str, metrics: list[str], path: Path) -> str:
    """The head of a table and, for each metric, its average row with the metric's name in front."""
    rows: list[str] = []
    for metric in metrics:
        head, line, *rest = _block(table, metric, path).splitlines()[2:]
        average = next(row for row in rest if row.startswith("| average |"))
        rows += [] if rows else [head, line]
        rows.append(average.replace("| average |", f"| {metric} |", 1))
    return "\n".join(rows)


def _block(table: str, metric: str, path: Path) -> str:
    for found in _HEADING.finditer(table):
        if found["metric"] == metric:
            return f"**{metric}**\n\n{found['rows'].strip()}"
    raise ValueError(f"{path} has no table of {metric}")
