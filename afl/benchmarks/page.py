"""The page on the benchmark's figures, generated from the JSON files in its folder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from afl.benchmarks.harness import quantity
from afl.reporting.markdown import markdown

COLUMNS = ("what", "ours", "theirs", "ratio", "memory, ours", "theirs", "budget", "verdict", "against")


def cells(row: dict) -> list[str]:
    """The text of the table's columns for one row of the JSON file."""
    sign = "<=" if row["at_most"] else ">="
    return [
        row["what"],
        quantity(row["ours"], row["unit"]),
        quantity(row["theirs"], row["unit"]),
        "" if row["ratio"] is None else f"{row['ratio']:.3g}",
        quantity(row["ours_memory"], "B"),
        quantity(row["theirs_memory"], "B"),
        "" if row["budget"] is None else f"{sign} {row['budget']:g}",
        row["verdict"],
        row["note"],
    ]


def page_of(folder: Path, subjects: Iterable[str]) -> str:
    """The page as Markdown, from the files ``SUBJECT.json`` in the folder."""
    found = {name: folder / f"{name}.json" for name in subjects}
    contents = {name: json.loads(file.read_text()) for name, file in found.items() if file.is_file()}
    verdicts = [row["verdict"] for content in contents.values() for row in content["rows"]]
    lines = [
        "# This project against others on the same work",
        "",
        "Written by `make benchmark` from the JSON files next to it. Times are medians of repetitions that alternate in one run on one",
        "machine; the other side is called from its package. The ratio is theirs divided by ours, unless the line names another one.",
        "The last column says how memory was counted. Both sides allocate as they come, so times contain the page faults of their",
        "temporaries. Losses run once, untimed, directly before they are timed.",
        "",
        f"Budgets: {verdicts.count('met')} met, {verdicts.count('missed')} missed, {verdicts.count('not measured')} not measured here.",
    ]
    for name, content in contents.items():
        facts = content["machine"]
        lines += [
            "",
            f"## {name}",
            "",
            f"{facts['cpu']}, {facts['threads']} thread(s) of {facts['cores']} cores, load {facts['load']} at the end, {facts['gpu']}, "
            f"torch {facts['torch']}, Python {facts['python']}, source {facts['git']['source']}.",
            "",
            markdown(COLUMNS, map(cells, content["rows"]), align="--- " + "---: " * 6 + "--- ---"),
        ]
    return "\n".join(lines) + "\n"
