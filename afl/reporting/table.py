"""Tables: cells (detector, loss, data set, seed) folded over seeds, with intervals and differences to a
baseline."""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from afl.reporting import render
from afl.reporting.frame import AVERAGE
from afl.reporting.intervals import Estimate, estimate, paired_difference
from afl.reporting.records import CellName, Unit, cell_name, one_per_cell, unit_name
from afl.tracking.record import FINISHED, Record

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 6  # cells named in a note, before "and n more"
LONGEST = 160  # characters of an error in a note


@dataclass(frozen=True)
class TableSpec:
    """What a table shows.

    Attributes:
        name: of its files and its LaTeX label.
        detectors, losses: rows and columns, in this order.
        datasets: one group of blocks each.
        seeds: the runs that a cell is folded over.
        metrics: one block each, by their names in the record.
        baseline: loss to which differences are taken; None: the table has no differences.
        title: first sentence of the caption.
        label: short name in a list of tables; empty: the title.
        keys: run keys that belong to the table, where a folder holds other runs of the same cells; None: all.
        variants: for a data set with several draws or splits, its settings and their values, such as
            ``{"ccp": {"split": [0, 1]}}``; a cell is then folded over all variants with all seeds.
    """

    name: str
    detectors: Sequence[str]
    losses: Sequence[str]
    datasets: Sequence[str]
    seeds: Sequence[int]
    metrics: Sequence[str] = ("AP", "AP_r", "AP_c", "AP_f")
    baseline: str | None = "fl"
    title: str = ""
    label: str = ""
    keys: Sequence[str] | None = None
    variants: Mapping[str, Mapping[str, Sequence[object]]] = field(default_factory=dict)

    def units(self, dataset: str) -> list[Unit]:
        """What the cells of a data set are folded over: seeds, or (variant, seed) pairs, seed after seed."""
        settings = self.variants.get(dataset, {})
        variants = [
            dict(zip(settings, values, strict=True)) for values in itertools.product(*settings.values())
        ]
        return [unit_name(variant, seed) for seed in self.seeds for variant in variants]

    def __post_init__(self) -> None:
        for what in ("detectors", "losses", "datasets", "seeds", "metrics"):
            values = getattr(self, what)
            if not values:
                raise ValueError(f"table {self.name!r} has no {what}")
            if len(set(values)) < len(values):
                raise ValueError(f"table {self.name!r} names one of its {what} twice")
        if self.baseline is not None and self.baseline not in self.losses:
            raise ValueError(f"baseline {self.baseline!r} of table {self.name!r} is not among its losses")

    def require_losses(self, names: Iterable[str]) -> None:
        """Raises ValueError where the table does not have one of them."""
        for name in names:
            if name not in self.losses:
                raise ValueError(f"table {self.name} has no loss {name}; it has {', '.join(self.losses)}")


@dataclass(frozen=True)
class Entry:
    """One place of a block: a row and a loss, folded over seeds.

    Attributes:
        value: metric in [0, 1]; None where no seed has it.
        difference: to the baseline, over the seeds that both have; None for the baseline itself.
        finished, failed, missing: numbers of seeds.
        best: best of its row, beyond what its interval leaves open.
    """

    value: Estimate | None
    difference: Estimate | None
    finished: int
    failed: int
    missing: int
    best: bool = False


@dataclass(frozen=True)
class Block:
    """One metric on one data set; rows are detectors and, where there are several, their average."""

    dataset: str
    metric: str
    rows: dict[str, dict[str, Entry]]


@dataclass(frozen=True)
class Table:
    """Caption, notes, blocks, and the records behind them.

    Attributes:
        spec: what was asked for.
        caption: title, statistics, protocol, device, state of the code.
        notes: what a reader must know before believing a number: failed and missing cells, mixed states.
        blocks: by data set, then metric.
        cells: every cell of the spec with its record, None where there is none.
    """

    spec: TableSpec
    caption: str
    notes: list[str]
    blocks: list[Block]
    cells: dict[CellName, Record | None] = field(repr=False)

    def values(self, dataset: str, metric: str) -> dict[str, dict[str, dict[Unit, float]]]:
        """The metric, in [0, 1], by row of its block, loss and seed; only what finished runs have."""
        return _values(self.cells, self.spec, dataset, metric)

    @functools.cached_property
    def frame(self) -> pd.DataFrame:
        """The metrics of the table, averages included, as a long table: ``dataset``, ``metric``, ``detector`` (the row of a block),
        ``loss``, ``unit`` and ``value``."""
        rows = [
            (block.dataset, block.metric, row, loss, unit, value)
            for block in self.blocks
            for row, losses in self.values(block.dataset, block.metric).items()
            for loss, values in losses.items()
            for unit, value in values.items()
        ]
        import pandas as pd  # takes long, and a plan needs no frame

        return pd.DataFrame(rows, columns=["dataset", "metric", "detector", "loss", "unit", "value"])

    def to_csv(self) -> str:
        """Long form: one line per cell and seed, metrics in [0, 1], empty where undefined or missing."""
        return render.to_csv(self)

    def to_folded_csv(self) -> str:
        """One line per row, loss and metric: mean, interval, paired difference."""
        return render.to_folded_csv(self)

    def to_markdown(self) -> str:
        """Caption, notes and one table per block, metrics times 100."""
        return render.to_markdown(self)

    def to_latex(self) -> str:
        """A ``table*`` for booktabs, metrics times 100."""
        return render.to_latex(self)

    def to_rich(self) -> object:
        """For ``rich.print``: the blocks, and the wall time of each cell."""
        return render.to_rich(self)


def build_table(records: Iterable[Record], spec: TableSpec) -> Table:
    """Fold records into a table; the order of the records does not matter.

    Cells without a record or with a failed one leave holes, never numbers. The average over detectors exists
    for a seed only where every detector of the table has it, so that all losses are averaged over the same
    heads.

    Raises:
        ValueError: a cell has finished runs of several configurations, or no record knows one of the metrics.
    """
    found = one_per_cell(records, spec.keys, spec.variants)
    cells: dict[CellName, Record | None] = {
        cell: found.get(cell)
        for cell in (
            (dataset, detector, loss, unit)
            for dataset in spec.datasets
            for detector in spec.detectors
            for loss in spec.losses
            for unit in spec.units(dataset)
        )
    }
    used = {cell: record for cell, record in cells.items() if record is not None}
    finished = {cell: record for cell, record in used.items() if record.status == FINISHED}
    spec = _with_ap_fixed(spec, finished.values())
    for metric in spec.metrics:
        if finished and not any(metric in record.metrics for record in finished.values()):
            known = ", ".join(sorted({name for record in finished.values() for name in record.metrics}))
            raise ValueError(f"no record of table {spec.name!r} has the metric {metric!r}; they have {known}")
    blocks = [_block(cells, spec, dataset, metric) for dataset in spec.datasets for metric in spec.metrics]
    return Table(
        spec=spec,
        caption=_caption(spec, finished),
        notes=_notes(spec, cells, finished),
        blocks=blocks,
        cells=cells,
    )


def _with_ap_fixed(spec: TableSpec, finished: Iterable[Record]) -> TableSpec:
    """The table with AP_fixed beside AP where records have it."""
    metrics = list(spec.metrics)
    if (
        "AP" not in metrics
        or "AP_fixed" in metrics
        or not any("AP_fixed" in record.metrics for record in finished)
    ):
        return spec
    metrics.insert(metrics.index("AP") + 1, "AP_fixed")
    return replace(spec, metrics=metrics)


def _block(cells: Mapping[CellName, Record | None], spec: TableSpec, dataset: str, metric: str) -> Block:
    values = _values(cells, spec, dataset, metric)
    counts = {
        detector: {
            loss: Counter(
                "missing" if run is None else run.status
                for run in (cells[dataset, detector, loss, unit] for unit in spec.units(dataset))
            )
            for loss in spec.losses
        }
        for detector in spec.detectors
    }
    if AVERAGE in values:
        counts[AVERAGE] = {
            loss: Counter(finished=len(runs), missing=len(spec.units(dataset)) - len(runs))
            for loss, runs in values[AVERAGE].items()
        }
    return Block(
        dataset=dataset,
        metric=metric,
        rows={name: _row(values[name], counts[name], spec) for name in values},
    )


def _values(
    cells: Mapping[CellName, Record | None], spec: TableSpec, dataset: str, metric: str
) -> dict[str, dict[str, dict[Unit, float]]]:
    """The metric by row, loss and seed, where there is one; the average only over seeds that every detector has."""
    values: dict[str, dict[str, dict[Unit, float]]] = {}
    for detector in spec.detectors:
        values[detector] = {}
        for loss in spec.losses:
            runs = {unit: cells[dataset, detector, loss, unit] for unit in spec.units(dataset)}
            values[detector][loss] = {
                seed: run.metrics[metric]
                for seed, run in runs.items()
                if run is not None and run.status == FINISHED and run.metrics.get(metric) is not None
            }
    if len(spec.detectors) > 1:
        values[AVERAGE] = {}
        for loss in spec.losses:
            rows = [values[detector][loss] for detector in spec.detectors]
            common = set.intersection(*(set(row) for row in rows))
            values[AVERAGE][loss] = {
                seed: math.fsum(row[seed] for row in rows) / len(rows) for seed in sorted(common)
            }
    return values


def _row(
    values: Mapping[str, Mapping[Unit, float]], counts: Mapping[str, Counter], spec: TableSpec
) -> dict[str, Entry]:
    differences = {
        loss: paired_difference(values[loss], values[spec.baseline])
        for loss in spec.losses
        if spec.baseline is not None and loss != spec.baseline
    }
    means = {loss: estimate([values[loss][seed] for seed in sorted(values[loss])]) for loss in spec.losses}
    best = _best(means, differences, spec.baseline)
    return {
        loss: Entry(
            value=means[loss],
            difference=differences.get(loss),
            finished=counts[loss][FINISHED],
            failed=counts[loss]["failed"],
            missing=counts[loss]["missing"],
            best=loss == best,
        )
        for loss in spec.losses
    }


def _best(
    means: Mapping[str, Estimate | None], differences: Mapping[str, Estimate | None], baseline: str | None
) -> str | None:
    """The loss with the largest mean, if its paired difference to the baseline is clear of zero; the baseline
    itself, if every other one's is. Without a baseline none is the best."""
    present = {loss: mean.mean for loss, mean in means.items() if mean is not None}
    if baseline is None or len(present) < 2:
        return None
    first = max(present, key=lambda loss: present[loss])
    if first != baseline:
        difference = differences[first]
        return first if difference is not None and difference.positive else None
    others = [differences[loss] for loss in present if loss != baseline]
    return first if all(other is not None and other.negative for other in others) else None


def _caption(spec: TableSpec, finished: Mapping[CellName, Record]) -> str:
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
    if any("afl" in loss for loss in spec.losses):
        sentences.append("AFL here is a reconstruction: the paper's formula is not public")
    return ". ".join(sentences) + "."


def _variants(settings: Mapping[str, Sequence[object]]) -> str:
    return "".join(f"{name} {', '.join(map(str, values))} x " for name, values in settings.items())


def _protocol(records: Iterable[Record]) -> list[str]:
    """``name value`` for each entry of the records' protocol, all values where they differ."""
    values: dict[str, set[str]] = defaultdict(set)
    for record in records:
        for name, value in record.protocol.items():
            values[name].add(str(value))
    return [f"{name} {' / '.join(sorted(found))}" for name, found in values.items()]


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
    """What must agree for two numbers to stand side by side: the source, else commit and dirtiness."""
    return str(record.git.get("source") or _code(record))


def _notes(
    spec: TableSpec, cells: Mapping[CellName, Record | None], finished: Mapping[CellName, Record]
) -> list[str]:
    notes = []
    states = Counter(_state(record) for record in finished.values())
    if len(states) > 1:
        reference = max(states, key=lambda state: (states[state], state))
        others = [cell for cell, record in finished.items() if _state(record) != reference]
        notes.append(
            f"Records come from {len(states)} states of the code, most from {reference}. "
            f"Run again: {_named(others)}"
        )
    unlike = _unlike(spec, finished)
    if unlike:
        notes.append(f"Protocol or data differ from {spec.baseline}'s in the same row: {_named(unlike)}")
    failed = [
        (cell, record) for cell, record in cells.items() if record is not None and record.status != FINISHED
    ]
    if failed:
        causes = [f"{cell_name(cell)} ({_one_line(record.error)})" for cell, record in failed]
        notes.append(f"Failed: {_shortened(causes)}")
    missing = [cell for cell, record in cells.items() if record is None]
    if missing:
        notes.append(f"Not run yet ({len(missing)} of {len(cells)}): {_named(missing)}")
    return notes


def _unlike(spec: TableSpec, finished: Mapping[CellName, Record]) -> list[CellName]:
    """Cells trained on other terms (protocol, data) than the baseline of their row and seed."""
    unlike = []
    for cell, record in finished.items():
        dataset, detector, _, seed = cell
        base = finished.get((dataset, detector, spec.baseline, seed)) if spec.baseline else None
        if base is not None and _terms(record) != _terms(base):
            unlike.append(cell)
    return unlike


def _terms(record: Record) -> tuple:
    return sorted(record.protocol.items()), record.data_hash


def _named(cells: Sequence[CellName]) -> str:
    return _shortened([cell_name(cell) for cell in cells])


def _one_line(error: str | None) -> str:
    return " ".join(error.split())[:LONGEST] if error else "no reason given"


def _shortened(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
