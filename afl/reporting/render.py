"""Writes a table as CSV, Markdown and LaTeX, and for a terminal, without computing figures."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from afl.reporting.frames import Frames
from afl.reporting.intervals import Estimate
from afl.reporting.markdown import markdown

if TYPE_CHECKING:
    from afl.reporting.table import Block, Entry, Table

ABSENT = "—"
FAILED = "failed"
UNDEFINED = "n/a"
MOST_COLUMNS = 10  # with more losses than this, losses are rows and detectors are columns


def to_csv(table: Table) -> str:
    """One line per cell and seed."""
    spec = table.spec
    head = ["dataset", "detector", "loss", "seed", "status"]
    lines = [[*head, *spec.metrics, "train_seconds", "eval_seconds", "key"]]
    for cell, record in table.cells.items():
        if record is None:
            lines.append([*cell, "missing", *[""] * (len(spec.metrics) + 3)])
            continue
        metrics = [_decimal(record.metrics.get(name)) for name in spec.metrics]
        seconds = [_decimal(record.train_seconds, 1), _decimal(record.eval_seconds, 1)]
        lines.append([*cell, record.status, *metrics, *seconds, record.key])
    return _csv(lines)


def to_folded_csv(table: Table) -> str:
    """One line per data set, metric, row and loss."""
    lines = [
        ["dataset", "metric", "detector", "loss", "mean", "interval", "difference", "difference_interval", "pairs",
         "finished", "failed", "missing"]
    ]  # fmt: skip
    for block in table.blocks:
        for row, entries in block.rows.items():
            for loss, entry in entries.items():
                place = [block.dataset, block.metric, row, loss]
                pairs = entry.difference.n if entry.difference else ""
                counts = [pairs, entry.finished, entry.failed, entry.missing]
                lines.append([*place, *_numbers(entry.value), *_numbers(entry.difference), *counts])
    return _csv(lines)


def to_markdown(table: Table) -> str:
    """Caption, notes, one table per block."""
    parts = [_escaped(table.caption)]
    if table.notes:
        parts.append("\n".join(f"- {_escaped(note)}." for note in table.notes))
    for block in table.blocks:
        columns, rows = _oriented(table, block)
        head = ["", *map(_escaped, columns)]
        lines = ([_escaped(name), *map(_markdown_entry, entries)] for name, entries in rows.items())
        parts.append(f"**{_escaped(_heading(block))}**\n\n" + markdown(head, lines))
    return "\n\n".join(parts) + "\n"


def to_latex(table: Table) -> str:
    """``table*`` with one headed group of rows per block."""
    columns, _ = _oriented(table, table.blocks[0])
    lines = [
        r"\begin{table*}",
        r"\centering",
        r"\small",
        rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"\toprule",
        " & ".join(["", *map(_latex, columns)]).strip() + r" \\",
    ]
    for block in table.blocks:
        lines += [
            r"\midrule",
            rf"\multicolumn{{{len(columns) + 1}}}{{l}}{{\textit{{{_latex(_heading(block))}}}}} \\",
        ]
        for name, entries in _oriented(table, block)[1].items():
            lines.append(" & ".join([_latex(name), *map(_latex_entry, entries)]) + r" \\")
    caption = " ".join([table.caption, *(f"{note}." for note in table.notes)])
    lines += [
        r"\bottomrule",
        r"\end{tabular}",
        rf"\caption{{{_latex(caption)}}}",
        rf"\label{{tab:{table.spec.name}}}",
        r"\end{table*}",
    ]
    return "\n".join(lines) + "\n"


def to_rich(table: Table) -> Any:
    """Blocks and wall times as a ``rich`` group."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = [Text(table.caption)]
    parts += [Text(f"{note}.", style="yellow") for note in table.notes]
    for block in table.blocks:
        columns, rows = _oriented(table, block)
        texts = {
            name: [Text(_plain_entry(entry, "\n"), style="bold" if entry.best else "") for entry in entries]
            for name, entries in rows.items()
        }
        parts.append(Frames(_heading(block), columns, texts))
    for dataset in table.spec.datasets:
        columns, rows = _turned(
            table.spec.losses,
            {
                detector: [_wall_time(table, dataset, detector, loss) for loss in table.spec.losses]
                for detector in table.spec.detectors
            },
        )
        parts.append(Frames(f"{dataset}: wall time per cell, seconds", columns, rows))
    return Group(*parts)


def _oriented(table: Table, block: Block) -> tuple[Sequence[str], dict[str, Sequence[Entry]]]:
    """Names of the columns, and the entries of each row."""
    return _turned(table.spec.losses, {row: list(entries.values()) for row, entries in block.rows.items()})


def _turned(losses: Sequence[str], rows: dict[str, Sequence]) -> tuple[Sequence[str], dict[str, Sequence]]:
    """Columns and rows, transposed if there are more losses than a page has room for."""
    if len(losses) <= MOST_COLUMNS:
        return losses, rows
    return list(rows), dict(zip(losses, map(list, zip(*rows.values(), strict=True)), strict=True))


def _wall_time(table: Table, dataset: str, detector: str, loss: str) -> str:
    records = [table.cells[dataset, detector, loss, unit] for unit in table.spec.units(dataset)]
    seconds = [record.seconds for record in records if record is not None and record.seconds is not None]
    return " ".join(f"{value:.0f}" for value in seconds) if seconds else ABSENT


def _heading(block: Block) -> str:
    return f"{block.dataset}: {block.metric}"


def hole(entry: Entry) -> str:
    """The text for an entry without a number."""
    if entry.finished:
        return UNDEFINED
    return FAILED if entry.failed else ABSENT


def _plain_entry(entry: Entry, separator: str = " ") -> str:
    if entry.value is None:
        return hole(entry)
    difference = f"{separator}({entry.difference.percent('+')})" if entry.difference else ""
    return entry.value.percent() + difference + entry.coverage


def _markdown_entry(entry: Entry) -> str:
    if entry.value is None:
        return hole(entry)
    value = entry.value.percent()
    return _plain_entry(entry).replace(value, f"**{value}**", 1) if entry.best else _plain_entry(entry)


def _escaped(text: str) -> str:
    """Markdown that shows ``text``. An underscore inside a word is not markup."""
    return re.sub(r"([\\|*`<>\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", text)


def _latex_entry(entry: Entry) -> str:
    if entry.value is None:
        return {ABSENT: "---", FAILED: "failed", UNDEFINED: "n/a"}[hole(entry)]
    value = _latex_number(entry.value.percent())
    value = rf"\textbf{{{value}}}" if entry.best else value
    if entry.difference:
        value += rf" {{\scriptsize ({_latex_number(entry.difference.percent('+'))})}}"
    return value + entry.coverage


def _latex_number(text: str) -> str:
    return text.replace("±", r"$\pm$").replace("-", "$-$")


LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "±": r"$\pm$", "—": "---", **{character: "\\" + character for character in "{}_%&#$"},
}  # fmt: skip


def _latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)


def _numbers(value: Estimate | None) -> list[str]:
    return ["", ""] if value is None else [_decimal(value.mean), _decimal(value.half)]


def _decimal(value: float | None, places: int = 6) -> str:
    return "" if value is None else f"{round(value, places) + 0.0:.{places}f}"


def _csv(lines: Sequence[Sequence[object]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(lines)
    return buffer.getvalue()
