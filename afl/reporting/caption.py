"""The caption of a table, and notes about limitations of its numbers."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from afl.reporting.records import CellName, cell_name
from afl.reporting.spec import TableSpec
from afl.tracking import FINISHED, RECONSTRUCTION, Record, names_afl

SHOWN = 6  # cells named in a note, before "and n more"
EXCLUDED = re.compile(r"; group means leave out (?P<number>\d+) classes(?:, without (?P<names>.+))?$")
LONGEST = 160  # characters of an error in a note


def caption(spec: TableSpec, finished: Mapping[CellName, Record]) -> str:
    """Title, statistics, protocol, device and state of the code."""
    sentences = [spec.title.rstrip(".")] if spec.title else []
    seeds = ", ".join(str(seed) for seed in spec.seeds)
    if spec.variants:
        numbers = ", ".join(
            f"{dataset} {len(spec.units(dataset))} ({_variants(spec.variants.get(dataset, {}))}seeds {seeds})"
            for dataset in spec.datasets
        )
        sentences.append(
            f"Metrics x 100: mean over units, a unit being a variant of the data set with a seed, with 95 % t-interval; in brackets "
            f"the paired difference to {spec.baseline} by unit. Units: {numbers}. Bold: best loss of a detector, its difference's "
            "interval clear of zero"
        )
    elif len(spec.seeds) > 1:
        sentences.append(
            f"Metrics x 100: mean over seeds {seeds} with 95 % t-interval; in brackets the paired difference "
            f"to {spec.baseline} by seed. Bold: best loss of a detector, its difference's interval clear of zero"
        )
    else:
        sentences.append(f"Metrics x 100, seed {seeds} only; in brackets the difference to {spec.baseline}")
    if spec.baseline is None:
        sentences[-1] = (
            f"Metrics x 100, {'mean over ' * (len(spec.seeds) > 1)}seeds {seeds}; no loss to compare with"
        )
    sentences.append(f"Protocol: {'; '.join(_protocol(finished.values())) or 'no finished cell yet'}")
    devices = sorted({_device(record) for record in finished.values()})
    if devices:
        sentences.append(f"Device: {' / '.join(devices)}")
        sentences.append(f"Code: {' / '.join(sorted({_code(record) for record in finished.values()}))}")
    if any(map(names_afl, spec.losses)):
        sentences.append(RECONSTRUCTION)
    return ". ".join(sentences) + "."


def _variants(settings: Mapping[str, Sequence[object]]) -> str:
    return "".join(f"{name} {', '.join(map(str, values))} x " for name, values in settings.items())


def _protocol(records: Iterable[Record]) -> list[str]:
    """``name value`` for each entry of the records' protocol, with all values if they differ."""
    values: dict[str, set[str]] = defaultdict(set)
    for record in records:
        for name, value in record.protocol.items():
            values[name].add(str(value))
    return [f"{name} {' / '.join(sorted(map(_readable, found)))}" for name, found in values.items()]


def _readable(value: str) -> str:
    """The value in words, if it is the note of a record of several folds."""
    return EXCLUDED.sub(_excluded, value)


def _excluded(note: re.Match) -> str:
    if note["number"] == "0":
        return ""
    number = "one class" if note["number"] == "1" else f"{note['number']} classes"
    return f"; group means exclude {number} ({note['names']})"


def _device(record: Record) -> str:
    threads = record.environment.get("threads")
    name = str(record.environment.get("device", "unknown"))
    on_cpu = record.environment.get("device") == record.environment.get("cpu")
    return f"{name}, {threads} thread{'s' if threads != 1 else ''}" if threads and on_cpu else name


def _code(record: Record) -> str:
    sha = record.git.get("sha")
    words = [f"source {record.git['source']}"] if record.git.get("source") else []
    if sha:
        words.append(f"commit {sha[:7]}{' with changes' if record.git.get('dirty') else ''}")
    return ", ".join(words) or "unknown"


def _state(record: Record) -> str:
    """The state of the code, which must agree for two numbers to be compared: the source, else commit and dirtiness."""
    return str(record.git.get("source") or _code(record))


def notes(
    spec: TableSpec, cells: Mapping[CellName, Record | None], finished: Mapping[CellName, Record]
) -> list[str]:
    """Mixed states of the code, other protocols, failed and missing cells."""
    found = []
    states = Counter(_state(record) for record in finished.values())
    if len(states) > 1:
        reference = max(states, key=lambda state: (states[state], state))
        others = [cell for cell, record in finished.items() if _state(record) != reference]
        found.append(
            f"Records come from {len(states)} states of the code, most from {reference}. "
            f"Run again: {_named(others)}"
        )
    unlike = _unlike(spec, finished)
    if unlike:
        found.append(f"Protocol or data differ from {spec.baseline}'s in the same row: {_named(unlike)}")
    started = [cell for cell, record, base in _with_baseline(spec, finished) if record.started_apart(base)]
    if started:
        found.append(f"Initial weights differ from {spec.baseline}'s in the same row: {_named(started)}")
    failed = [
        (cell, record) for cell, record in cells.items() if record is not None and record.status != FINISHED
    ]
    if failed:
        causes = [f"{cell_name(cell)} ({_one_line(record.error)})" for cell, record in failed]
        found.append(f"Failed: {shortened(causes)}")
    missing = [cell for cell, record in cells.items() if record is None]
    if missing:
        found.append(f"Not run yet ({len(missing)} of {len(cells)}): {_named(missing)}")
    return found


def _unlike(spec: TableSpec, finished: Mapping[CellName, Record]) -> list[CellName]:
    """Cells with another protocol or other data than the baseline of their row and seed."""
    return [cell for cell, record, base in _with_baseline(spec, finished) if _terms(record) != _terms(base)]


def _with_baseline(
    spec: TableSpec, finished: Mapping[CellName, Record]
) -> Iterator[tuple[CellName, Record, Record]]:
    """Cells, their records, and the record of the baseline in the same row with the same seed, if it exists."""
    for cell, record in finished.items():
        dataset, detector, _, seed = cell
        base = finished.get((dataset, detector, spec.baseline, seed)) if spec.baseline else None
        if base is not None:
            yield cell, record, base


def _terms(record: Record) -> tuple:
    return sorted(record.protocol.items()), record.data_hash


def _named(cells: Sequence[CellName]) -> str:
    return shortened([cell_name(cell) for cell in cells])


def _one_line(error: str | None) -> str:
    return " ".join(error.split())[:LONGEST] if error else "no reason given"


def shortened(names: Sequence[str]) -> str:
    """The first names, and the number of the others."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
