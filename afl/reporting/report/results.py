"""Tables and differences."""

from __future__ import annotations

from html import escape

from afl.reporting.names import METRICS, detector_name, percent
from afl.reporting.report.material import styles
from afl.reporting.report.page import Section, choices, note
from afl.reporting.report.svg import Axis, Mark, dot_rows, extent, legend
from afl.reporting.table import AVERAGE, Block, Entry, Table

# Differences of this size, in points of AP, have the strongest tint.
STRONGEST = 10.0


def results_section(found: Table) -> Section:
    """Differences to the baseline as dots, then every metric as a table."""
    spec = found.spec
    several = len(spec.datasets) > 1
    drawings = "".join(_differences(block, found, several) for block in found.blocks if spec.baseline)
    tables = {_heading(block, several): _table(block, found) for block in found.blocks}
    keys = [("sx", "small, coloured: one detector"), ("ink", "large: average over detectors")]
    differences = (
        f'<h3>Difference to {escape(spec.baseline)}</h3><div class="grid two">{drawings}</div>{legend(keys)}'
        if spec.baseline
        else ""
    )
    body = (
        _reading(found)
        + differences
        + "<h3>Figures</h3>"
        + choices(f"{spec.name}-metric", "Metric", tables)
        + "".join(note(escape(text) + ".") for text in found.notes)
    )
    return Section(
        f"results-{spec.name}", spec.title or spec.name, spec.label or spec.title or spec.name, body
    )


def _reading(found: Table) -> str:
    """What a difference is worth: with one seed nothing is known of chance, with several how many would be false."""
    spec = found.spec
    seeds = len(spec.seeds)
    if spec.baseline is None:
        return note(
            "Metrics × 100. There is no second loss to compare with focal loss here, so no differences are shown."
        )
    if seeds == 1:
        return note(
            f"<b>One seed.</b> There is no interval and no significance here: a difference of a point or two is within "
            f"what another seed changes. Figures are metrics × 100; in small the difference to {escape(spec.baseline)}."
        )
    entries = [
        entry
        for block in found.blocks
        for row, own in block.rows.items()
        for loss, entry in own.items()
        if row != AVERAGE
        and loss != spec.baseline
        and entry.difference is not None
        and entry.difference.half is not None
    ]
    sure = sum(entry.difference.positive or entry.difference.negative for entry in entries)
    return note(
        f"Metrics × 100: mean over {seeds} seeds ± 95 % t-interval; in small the paired difference to "
        f"{escape(spec.baseline)} by seed, in <b>bold</b> where its interval is clear of zero.",
        f"That holds for {sure} of {len(entries)} differences; if no loss made any difference, about "
        f"{0.05 * len(entries):.0f} would be expected to.",
    )


def _heading(block: Block, several: bool) -> str:
    name = METRICS.get(block.metric, block.metric)
    return f"{name} · {block.dataset}" if several else name


def _differences(block: Block, found: Table, several: bool) -> str:
    style = styles(found.spec)
    rows, values = [], []
    for loss in found.spec.losses:
        if loss == found.spec.baseline:
            continue
        marks = []
        for row, entries in block.rows.items():
            difference = entries[loss].difference
            if difference is None:
                continue
            main = row == AVERAGE
            half = None if difference.half is None else 100 * difference.half
            text = f"{detector_name(row)}, {loss}: {percent(difference.mean, True)}"
            text += f" ± {half:.1f}" if half is not None else ""
            marks.append(Mark(100 * difference.mean, "ink" if main else style[loss], text, half, main))
        values += [mark.value for mark in marks]
        rows.append((loss, marks))
    low, high = extent([*values, 0.0, 1.0, -1.0])
    axis = Axis(low, high, label=f"points of {block.metric}")
    return dot_rows(_heading(block, several), rows, axis, width=420)


def _table(block: Block, found: Table) -> str:
    rows = []
    for name, entries in block.rows.items():
        cells = "".join(_cell(entries[loss]) for loss in found.spec.losses)
        shown = name if name == AVERAGE else detector_name(name)
        kind = ' class="average"' if name == AVERAGE else ""
        rows.append(f"<tr{kind}><td>{escape(shown)}</td>{cells}</tr>")
    head = "".join(f"<th>{escape(loss)}</th>" for loss in ["", *found.spec.losses])
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _cell(entry: Entry) -> str:
    if entry.value is None:
        word = "failed" if entry.failed else "not run" if entry.missing else "undefined"
        return f'<td class="soft">{word}</td>'
    value = percent(entry.value.mean)
    half = "" if entry.value.half is None else f" ± {100 * entry.value.half:.1f}"
    if entry.difference is None:
        return f"<td><b>{value}</b>{half}<small>&nbsp;</small></td>"
    points = 100 * entry.difference.mean
    tint = "gain" if points > 0 else "loss"
    strength = 0.32 * min(abs(points) / STRONGEST, 1.0)
    kinds = " ".join(
        word
        for word, holds in (
            ("sure", entry.difference.positive or entry.difference.negative),
            ("best", entry.best),
        )
        if holds
    )
    own = "" if entry.difference.half is None else f" ± {100 * entry.difference.half:.1f}"
    return (
        f'<td class="{kinds}" style="background:rgba(var(--{tint}),{strength:.2f})"><b>{value}</b>{half}'
        f"<small>{percent(entry.difference.mean, True)}{own}</small></td>"
    )
