"""Tables: train the missing cells of one, rebuild it from its records, or say what it would take.

    python -m scripts.table table=shapes action=run seeds=[0,1,2] jobs=2
    python -m scripts.table table=shapes
    python -m scripts.table table=coco action=plan seeds=[0,1,2]
    python -m scripts.table table=shapes source=wandb entity=ME project=afl

``run`` sweeps ``scripts.train`` over the table's cells; finished ones are skipped, failed ones are listed and do not stop
the rest, and the table fills as they finish. Tables and the records behind them go to ``results/NAME``.

On a cluster every cell is a job of its own (records must lie on a disk that this process sees, too):

    python -m scripts.table table=coco action=run launch=[hydra/launcher=submitit_slurm,hydra.launcher.gpus_per_node=1]
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from afl.reporting import ServerError, Table, build_table, connect, load_records, server_records
from afl.tracking import FINISHED, Record, write_record, write_text
from datasets import DataError
from scripts.cells import Cell, cells_of, quoted
from scripts.entry import quiet_libraries, run_hydra
from scripts.kept import portable, table_spec
from scripts.plan import plan

POLL_SECONDS = 2.0
log = logging.getLogger(__name__)
console = Console() if sys.stdout.isatty() else Console(width=150)


def sweep(config: DictConfig, seeds: list[int], log_path: Path) -> subprocess.Popen:
    """Start ``scripts.train -m`` over the table's cells; its output goes to ``log_path``."""
    table = config.table
    rows = f"detector={_list(table.detectors)}"
    if table.experiments:  # which bring detector and data set
        rows = "experiment=" + _list(f"{table.experiments}/{detector}" for detector in table.detectors)
    command = [
        sys.executable, "-m", "scripts.train", "-m", *config.launch,
        f"seed={_list(seeds)}", f"loss={_list(table.losses)}", f"dataset={_list(table.datasets)}", rows,
        *(f"paths.{name}={quoted(config.paths[name])}" for name in ("data", "cache", "output")), "trainer.progress=none",
        *table.overrides, *config.overrides,
    ]  # fmt: skip
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with open(log_path, "a", encoding="utf-8") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)


def run(config: DictConfig, seeds: list[int]) -> list[Record]:
    """Train what is missing, showing the table as it fills; returns the records of all cells that have one."""
    cells = cells_of(config, seeds)
    missing = [cell for cell in cells if not cell.is_finished]
    if not missing:
        return _records(cells)
    log_path = Path(config.paths.output) / "sweeps" / f"{config.table.name}.log"
    done = len(cells) - len(missing)
    console.print(
        f"{config.table.title}: {len(cells)} cells, {done} finished, {len(missing)} to train, "
        f"{config.jobs} side by side; their output: {log_path}"
    )
    before = {cell.name: cell.record() for cell in missing}
    process, waiting, started = sweep(config, seeds, log_path), list(missing), time.perf_counter()
    try:
        while waiting:
            running = process.poll() is None
            new = [
                cell
                for cell in waiting
                if (found := cell.record()) is not None and found != before[cell.name]
            ]
            for cell in new:
                waiting.remove(cell)
                _announce(cell, len(cells) - len(waiting), len(cells), time.perf_counter() - started)
            if new and waiting and sys.stdout.isatty():
                console.print(_table(config, seeds, _records(cells)).to_rich())
            if not running:
                break
            time.sleep(POLL_SECONDS)
        process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        console.print("stopped; the same command goes on where this one was")
        raise SystemExit(130) from None
    if waiting:
        names = ", ".join(cell.name for cell in waiting)
        last = "\n".join(log_path.read_text(encoding="utf-8").rstrip().splitlines()[-8:])
        console.print(
            f"no record came of {names}. The end of {log_path}:\n{last}", highlight=False, markup=False
        )
    return _records(cells)


def main(config: DictConfig) -> None:
    """Do what ``config.action`` says; what is wrong with data or configuration is one line."""
    quiet_libraries()
    try:
        _main(config)
    except (ValueError, OSError, ServerError) as problem:
        sys.exit(str(problem))


def _main(config: DictConfig) -> None:
    """Plan, or train if asked to, then write and print the table."""
    if config.action == "plan":
        console.print(plan(config, list(config.seeds or [0])).to_rich())
        return
    folder = Path(config.results) / config.table.name
    kept = folder / "records"
    if config.action == "run":
        if config.table.get("trained_at"):
            sys.exit(
                f"table={config.table.name} was trained with the configs of commit {config.table.trained_at}; check that out to train "
                "it again"
            )
        seeds = list(config.seeds or [0])
        records = run(config, seeds)
        for record in records:
            name = f"{record.dataset}-{record.detector}-{record.loss.replace('/', '_')}-s{record.seed}"
            write_record(kept / f"{name}.json", portable(record))
    elif config.action == "build" and config.source == "wandb":
        records = _on_server(config)
        seeds = list(config.seeds or sorted({record.seed for record in records}))
        if not records:
            sys.exit(f"W&B project {config.project} has no record of a cell of table={config.table.name}")
    elif config.action == "build" and config.source == "disk":
        records = load_records(sorted(kept.glob("*.json")))
        seeds = list(config.seeds or sorted({record.seed for record in records}))
        if not records:
            sys.exit(
                f"{kept} has no records yet; make them: python -m scripts.table table={config.table.name} action=run"
            )
    else:
        sys.exit(
            f"action is {config.action!r} and source {config.source!r}; the action is build, run or plan, the source of build "
            "disk or wandb"
        )
    table = _table(config, seeds, records)
    for name, text in (
        ("table.md", table.to_markdown()),
        ("table.tex", table.to_latex()),
        ("table.csv", table.to_folded_csv()),
        ("cells.csv", table.to_csv()),
    ):
        write_text(folder / name, text)
    console.print(table.to_rich())
    console.print(f"written: {folder}/table.md, table.tex, table.csv, cells.csv")
    if any(record.status != FINISHED for record in records) or len(records) < len(table.cells):
        sys.exit(1)


def _on_server(config: DictConfig) -> list[Record]:
    """The records that a W&B project has of the table's cells."""
    table = config.table
    own = [
        record
        for record in server_records(connect(), entity=config.entity, project=config.project)
        if record.detector in table.detectors
        and record.loss in table.losses
        and record.dataset in table.datasets
    ]
    seeds = sorted({record.seed for record in own})
    try:
        keys = {cell.folder.name for cell in cells_of(config, seeds)}
    except (
        DataError
    ):  # without the data nobody knows the names of their runs: all of the cells' runs are taken
        return own
    others = [record.key for record in own if record.key not in keys]
    if others:
        console.print(
            f"left out, of another configuration than the table's: {', '.join(others)}", markup=False
        )
    return [record for record in own if record.key in keys]


def _table(config: DictConfig, seeds: list[int], records: list[Record]) -> Table:
    return build_table(records, table_spec(config.table, seeds))


def _announce(cell: Cell, done: int, total: int, seconds: float) -> None:
    record = cell.record()
    if record.status == FINISHED:
        ap = record.metrics.get("AP")
        result = f"AP {'undefined' if ap is None else f'{100 * ap:.1f}'} in {record.seconds:.0f} s"
    else:
        result = f"failed: {record.error}"
    console.print(
        f"[{done}/{total}] {cell.name}: {result} ({seconds / 60:.1f} min so far)",
        highlight=False,
        markup=False,
    )


def _records(cells: list[Cell]) -> list[Record]:
    return [record for cell in cells if (record := cell.record()) is not None]


def _list(values) -> str:
    return ",".join(str(value) for value in values)


if __name__ == "__main__":
    run_hydra(main, "tables")
