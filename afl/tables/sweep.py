"""Trains the missing runs of a table, and prints one line for each run that ends."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from afl.config import quoted
from afl.reporting.caption import shortened
from afl.tables.cells import Cell, cells_of
from afl.tables.child import interrupted_by_signals, start, stop
from afl.tables.plan import FEATURES, Plan, Row, plan
from afl.tables.speed import this_device
from afl.tracking import FINISHED, Record
from afl.tracking.record import DamagedRecord, read_record
from afl.training.folds import fold_record

POLL_SECONDS = 1.0
READING = "Reading the data of the runs (generated data sets are made on first use)"  # shown on a terminal, until it is done
LINES_OF_LOG = 8


def sweep(
    config: DictConfig, seeds: Sequence[int], log_path: Path, datasets: Sequence[str] | None = None
) -> subprocess.Popen:
    """Start ``scripts.train -m`` for the runs of the table, or of some of its ``datasets``; the output goes to ``log_path``."""
    table = config.table
    datasets = datasets or list(table.datasets)
    rows = f"detector={_list(table.detectors)}"
    if table.experiments:  # they set detector and data set
        rows = "experiment=" + _list(f"{table.experiments}/{detector}" for detector in table.detectors)
    paths = [f"paths.{name}={quoted(config.paths[name])}" for name in ("data", "cache", "output")]
    command = [
        sys.executable, "-m", "scripts.train", "-m", *config.launch,
        f"seed={_list(seeds)}", f"loss={_list(table.losses)}", f"dataset={_list(datasets)}", rows,
        *variants(table, datasets[0]), *paths, "trainer.progress=none", *table.overrides, *config.overrides,
    ]  # fmt: skip
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with open(log_path, "a", encoding="utf-8") as file:
        return start(command, file)


def variants(table: DictConfig, dataset: str) -> list[str]:
    """Overrides that sweep over the variants and folds of a data set: ``dataset.split=0,1``, ``dataset.fold=a,b``."""
    swept = dict((table.get("variants") or {}).get(dataset) or {})
    folds = (table.get("folds") or {}).get(dataset)
    return [
        f"dataset.{name}={_list(values)}"
        for name, values in {**swept, **({"fold": folds} if folds else {})}.items()
    ]


def sweeps_of(table: DictConfig) -> list[list[str]]:
    """The data sets of each sweep: one sweep for all, or one sweep per data set if they have variants or folds."""
    together = list(table.datasets)
    return [[name] for name in together] if table.get("variants") or table.get("folds") else [together]


class SweepError(ValueError):
    """A sweep ended before the first run of a table."""


@interrupted_by_signals()
def run(config: DictConfig, seeds: Sequence[int], console: Console) -> list[Record]:
    """Train the missing runs and print one line for each run that ends; returns all existing records of the table.

    Raises:
        SweepError: the table has no record after the sweep.
    """
    with console.status(READING):
        cells = cells_of(config, seeds)
    missing = [cell for cell in cells if not cell.is_finished]
    if not missing:
        console.print(f"{config.table.title}: all {len(cells)} cells are finished")
        return records_of(cells)
    log_path = Path(config.paths.output) / "sweeps" / f"{config.table.name}.log"
    console.out(
        f"{config.table.title}: {len(missing)} of {len(cells)} cells to train, "
        f"{config.jobs} at a time; their output: {log_path}",
        highlight=False,
    )
    clock = Clock(plan(config, list(seeds)), config.jobs)
    for line in clock.outlook():
        console.out(line, highlight=False)
    before = {cell.name: cell.written() for cell in missing}
    features = FeatureRuns(Path(config.paths.output))
    first, *later = sweeps_of(config.table)
    process, waiting = sweep(config, seeds, log_path, first), list(missing)
    try:
        while waiting:
            running = process.poll() is None
            for record in features.new():
                clock.ended(record)
                line = f"features of {record.detector}: trained in {record.seconds:.0f} s"
                console.out(line, highlight=False)
            for cell in list(waiting):
                ended = cell.record()
                if ended is not None and cell.written() != before[cell.name]:
                    waiting.remove(cell)
                    clock.ended(ended)
                    place = f"[{len(cells) - len(waiting)}/{len(cells)}]"
                    line = f"{place} {cell.name}: {result(ended, config.table.metrics)}; {clock.left()}"
                    console.out(line, highlight=False)
            if not running and not later:
                break
            if not running:
                process = sweep(config, seeds, log_path, later.pop(0))
            time.sleep(POLL_SECONDS)
        process.wait()
    except KeyboardInterrupt:
        stopping = "\nstopping; the runs save a checkpoint, Ctrl-C again to stop without it"
        stop(process, lambda: _say(console, stopping))
        _say(console, "stopped; the same command continues from here")
        raise SystemExit(130) from None
    records = records_of(cells)
    if waiting:
        last = "\n".join(log_path.read_text(encoding="utf-8").rstrip().splitlines()[-LINES_OF_LOG:])
        if not records:
            raise SweepError(f"no run of the table was trained; the end of {log_path}:\n{last}")
        names = shortened([cell.name for cell in waiting])
        console.out(f"no record of {names}. The end of {log_path}:\n{last}", highlight=False)
    return records


def _say(console: Console, text: str) -> None:
    """Print the text, unless the terminal has been closed."""
    with contextlib.suppress(OSError):
        console.print(text)


def records_of(cells: Iterable[Cell]) -> list[Record]:
    """The existing records; the finished runs of all folds of one table entry are combined into one record."""
    units: dict[str, list[Cell]] = {}
    for cell in cells:
        units.setdefault(cell.unit, []).append(cell)
    records = []
    for runs in units.values():
        if runs[0].fold is not None and all(run.is_finished for run in runs):
            records.append(fold_record([run.folder for run in runs]))
            continue
        # Without all folds there is no figure. A failed fold is shown as failed; otherwise the entry is missing.
        found = [record for run in runs if (record := run.record()) is not None]
        records += [record for record in found if runs[0].fold is None or record.status != FINISHED][:1]
    return records


def result(record: Record, metrics: Sequence[str]) -> str:
    """The figures, such as ``AP 58.1, AP_r 44.0 in 62 s``, or the reason of the failure."""
    if record.status != FINISHED:
        return f"failed: {record.error}"
    shown = [name for name in headline(metrics) if name in record.metrics]
    values = ((name, record.metrics[name]) for name in shown)
    figures = ", ".join(
        f"{name} undefined" if value is None else f"{name} {100 * value:.1f}" for name, value in values
    )
    return f"{figures} in {record.seconds:.0f} s"


def headline(metrics: Sequence[str]) -> tuple[str, ...]:
    """The metrics that fit into a terminal: the first one, and AP_r if the table has it."""
    return tuple(dict.fromkeys([metrics[0], *(name for name in metrics if name == "AP_r")]))


class FeatureRuns:
    """Finds pre-training runs below a folder that have finished since."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: set[Path] = set()
        self.new()

    def new(self) -> list[Record]:
        """The records of the runs that have finished since the last call."""
        found = []
        for path in sorted(self._folder.glob("shapes_pretraining-*/record.json")):
            with contextlib.suppress(DamagedRecord, FileNotFoundError):
                if path not in self._known and (record := read_record(path)).status == FINISHED:
                    found.append(record)
                    self._known.add(path)
        return found


class Clock:
    """Estimates the remaining time of a sweep.

    The estimate for a run is the mean time of the runs of its detector that this sweep has finished. Before the first of them,
    it is the time in the plan.

    Args:
        plan: of the table.
        jobs: number of runs at a time.
    """

    def __init__(self, plan: Plan, jobs: int) -> None:
        self._plan, self._jobs = plan, jobs
        self._ended = {row.name: 0 for row in plan.rows}
        self._seconds: dict[str, list[float]] = {row.name: [] for row in plan.rows}

    def outlook(self) -> list[str]:
        """Lines about the pre-training and the expected time of the sweep."""
        lines = [
            f"First, features are trained once per detector ({row.runs - row.done} of {row.runs} to train, about "
            f"{row.hours_each * 60:.1f} min each on one {row.device}); every loss starts from them."
            for row in self._plan.rows
            if row.name == FEATURES and row.done < row.runs
        ]
        here, known = this_device(), self._plan.hours_by_device()
        about = f"About {minutes(self._remaining())}"
        elsewhere = [device for device in known if device != here]
        if not elsewhere:
            return [*lines, f"{about} on this machine ({here})."]
        return [
            *lines,
            f"{about} at the speed of {', '.join(elsewhere)}; the speed of this machine ({here}) is known after the first run.",
        ]

    def ended(self, record: Record) -> None:
        """Count a run of the table or of the pre-training that has ended."""
        rows: tuple[str, ...] = (FEATURES,)
        if not record.dataset.endswith("_pretraining"):
            rows = (record.detector, f"{record.dataset} {record.detector}")
        for row in self._ended.keys() & rows:
            self._ended[row] += 1
            if record.status == FINISHED:
                self._seconds[row].append(record.seconds)

    def left(self) -> str:
        """The remaining time, such as ``about 12 min left``."""
        remaining = self._remaining()
        return f"about {minutes(remaining)} left" if remaining >= 1 else "done"

    def _remaining(self) -> float:
        return sum(self._of_row(row) for row in self._plan.rows) / self._jobs

    def _of_row(self, row: Row) -> float:
        """Total time of the runs of a row that have not ended, in seconds."""
        left = max(0, row.runs - row.done - self._ended[row.name])
        seconds = self._seconds[row.name]
        if seconds:
            return left * statistics.fmean(seconds)
        return 3600 * row.hours_left * left / max(1, row.runs - row.done)


def minutes(seconds: float) -> str:
    """A duration such as ``40 s``, ``12 min`` or ``3.4 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _list(values: Iterable[object]) -> str:
    return ",".join(str(value) for value in values)
