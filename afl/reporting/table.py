"""Tables: cells (detector, loss, data set, seed) folded over seeds, with intervals and differences to a baseline."""

from __future__ import annotations

import functools
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from afl.reporting import render
from afl.reporting.caption import caption, notes
from afl.reporting.frame import AVERAGE
from afl.reporting.intervals import Estimate, estimate, paired_difference
from afl.reporting.records import CellName, Unit, one_per_cell
from afl.reporting.spec import TableSpec
from afl.tracking.record import FINISHED, Record

if TYPE_CHECKING:
    import pandas as pd

AP_FIXED = "AP_fixed"  # only runs with trainer.fixed_detections have it


@dataclass(frozen=True)
class Entry:
    """One row and one loss of a block, folded over seeds.

    Attributes:
        value: metric in [0, 1]; None if no seed has it.
        difference: to the baseline, over the seeds that both have; None for the baseline itself.
        finished, failed, missing: numbers of seeds.
        best: the best loss of its row, with a difference whose interval excludes zero.
    """

    value: Estimate | None
    difference: Estimate | None
    finished: int
    failed: int
    missing: int
    best: bool = False

    @property
    def coverage(self) -> str:
        """`` [1/2]`` for a mean over one of two seeds; empty for all seeds."""
        seeds, total = self.value.n if self.value else 0, self.finished + self.failed + self.missing
        return "" if seeds == total else f" [{seeds}/{total}]"


@dataclass(frozen=True)
class Block:
    """One metric on one data set. Rows are detectors and, if there are several, their average."""

    dataset: str
    metric: str
    rows: dict[str, dict[str, Entry]]


@dataclass(frozen=True)
class Table:
    """Caption, notes, blocks, and the records behind them.

    Attributes:
        spec: what was asked for.
        caption: title, statistics, protocol, device, state of the code.
        notes: what a reader must know before trusting a number: failed and missing cells, mixed states of the code.
        blocks: by data set, then metric.
        cells: every cell of the spec with its record, or None.
    """

    spec: TableSpec
    caption: str
    notes: list[str]
    blocks: list[Block]
    cells: dict[CellName, Record | None] = field(repr=False)

    def values(self, dataset: str, metric: str) -> dict[str, dict[str, dict[Unit, float]]]:
        """The metric, in [0, 1], by row of its block, loss and seed, from finished runs."""
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
        import pandas as pd  # slow to import, and a plan needs no frame

        return pd.DataFrame(rows, columns=["dataset", "metric", "detector", "loss", "unit", "value"])

    def to_csv(self) -> str:
        """Long form: one line per cell and seed, metrics in [0, 1], empty if undefined or missing."""
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

    Cells without a finished record have no number. A seed has an average over detectors only if every detector of the table
    has it, so that all losses are averaged over the same detectors.

    Raises:
        ValueError: a cell has finished runs of several configurations, or a record lacks a metric.
    """
    found = one_per_cell(records, spec.variants)
    cells = {cell: found.get(cell) for cell in spec.cells()}
    used = {cell: record for cell, record in cells.items() if record is not None}
    finished = {cell: record for cell, record in used.items() if record.status == FINISHED}
    spec = _with_ap_fixed(spec, finished.values())
    _check_metrics(spec, finished.values())
    blocks = [_block(cells, spec, dataset, metric) for dataset in spec.datasets for metric in spec.metrics]
    return Table(
        spec=spec,
        caption=caption(spec, finished),
        notes=notes(spec, cells, finished),
        blocks=blocks,
        cells=cells,
    )


def _check_metrics(spec: TableSpec, finished: Collection[Record]) -> None:
    """Raise ValueError if no record has a metric of the table, or if one lacks a metric that others of its data set have."""
    have: dict[str, set[str]] = defaultdict(set)
    for record in finished:
        have[record.dataset] |= record.metrics.keys() - {AP_FIXED}
    known = set().union(*(record.metrics for record in finished))
    for metric in spec.metrics if finished else ():
        if metric not in known:
            raise ValueError(
                f"no record of table {spec.name!r} has the metric {metric!r}; they have {', '.join(sorted(known))}"
            )
        for record in finished:
            if metric in have[record.dataset] - record.metrics.keys():
                raise ValueError(
                    f"the record of {record.key} has no metric {metric!r}, which others of its data set have; delete its folder and run the cell again"
                )


def _with_ap_fixed(spec: TableSpec, finished: Iterable[Record]) -> TableSpec:
    """The table with ``AP_FIXED`` after AP if records have it."""
    metrics = list(spec.metrics)
    known = any(AP_FIXED in record.metrics for record in finished)
    if "AP" not in metrics or AP_FIXED in metrics or not known:
        return spec
    metrics.insert(metrics.index("AP") + 1, AP_FIXED)
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
        # A seed that every detector has finished is finished, even if the metric is undefined.
        counts[AVERAGE] = {
            loss: Counter(
                FINISHED
                if all(_is_finished(cells[dataset, one, loss, unit]) for one in spec.detectors)
                else "missing"
                for unit in spec.units(dataset)
            )
            for loss in spec.losses
        }
    return Block(
        dataset=dataset, metric=metric, rows={name: _row(values[name], counts[name], spec) for name in values}
    )


def _is_finished(run: Record | None) -> bool:
    return run is not None and run.status == FINISHED


def _values(
    cells: Mapping[CellName, Record | None], spec: TableSpec, dataset: str, metric: str
) -> dict[str, dict[str, dict[Unit, float]]]:
    """The metric by row, loss and seed; averages only for seeds that every detector has."""
    values: dict[str, dict[str, dict[Unit, float]]] = {}
    for detector in spec.detectors:
        values[detector] = {}
        for loss in spec.losses:
            runs = {unit: cells[dataset, detector, loss, unit] for unit in spec.units(dataset)}
            values[detector][loss] = {
                unit: value
                for unit, run in runs.items()
                if run is not None and _is_finished(run) and (value := run.metrics.get(metric)) is not None
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
    """The loss with the largest mean, if the interval of its paired difference to the baseline is above zero. If the baseline has
    the largest mean, it is best only if the intervals of the differences of all other losses are below zero. None without a baseline."""
    present = {loss: mean.mean for loss, mean in means.items() if mean is not None}
    if baseline is None or len(present) < 2:
        return None
    first = max(present, key=lambda loss: present[loss])
    if first != baseline:
        difference = differences[first]
        return first if difference is not None and difference.positive else None
    others = [differences[loss] for loss in present if loss != baseline]
    return first if all(other is not None and other.negative for other in others) else None
