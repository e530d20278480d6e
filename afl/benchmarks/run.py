"""Measures subjects, prints their tables and writes the page of ``results/benchmark``."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from afl.benchmarks import (
    decode,
    evaluation,
    gpu,
    input_pipeline,
    kernel_code,
    loss,
    project,
    remedies,
    training_step,
)
from afl.benchmarks.harness import Row, machine
from afl.benchmarks.page import COLUMNS, cells, page_of
from afl.tracking import write_text

MEASURES: dict[str, Callable[[bool], Iterable[Row]]] = {
    "loss": loss.measure,
    "step": training_step.measure,
    "remedies": remedies.measure,
    "gpu": gpu.measure,
    "compiled": kernel_code.measure,
    "eval": evaluation.measure,
    "input": input_pipeline.measure,
    "decode": decode.measure,
    "clone": project.clone,
}
ONLY_WHEN_NAMED = ("clone",)  # takes half an hour


def run(subjects: Sequence[str], options: Mapping[str, Any]) -> None:
    """Measure ``subjects`` (none: all but the long ones)."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options["threads"])
    quick = options["quick"]
    if options["dry"]:
        rehearsed = list(gpu.rehearse())
        show("gpu", rehearsed, machine())
        if wrong := [row.what for row in rehearsed if row.ours is None or row.verdict == "missed"]:
            raise RuntimeError(f"the rehearsal failed: {'; '.join(wrong)}")
        return
    folder = Path(options["results"]) / "benchmark" / ("quick" if quick else "")
    missed = 0
    for subject in subjects or [name for name in MEASURES if name not in ONLY_WHEN_NAMED]:
        if (
            subject == "gpu"
            and not quick
            and not torch.cuda.is_available()
            and (folder / "gpu.json").is_file()
        ):
            print("gpu: there is no GPU here; the figures of", folder / "gpu.json", "stay as they are")
            continue
        rows: list[Row] = []
        for row in MEASURES[subject](quick):
            # Budgets are for the real sizes.
            rows.append(replace(row, budget=None) if quick else row)
            if subject == "gpu":  # a borrowed GPU may be taken back at any time
                _save(folder, subject, quick, rows, machine())
        facts = machine()
        _save(folder, subject, quick, rows, facts)
        show(subject, rows, facts)
        missed += sum(row.verdict == "missed" for row in rows)
    if not quick:
        write_text(folder / "README.md", page_of(folder, tuple(MEASURES)))
        print(f"{missed} budgets missed" if missed else "every budget that this machine can measure is met")


def _save(folder: Path, subject: str, quick: bool, rows: list[Row], facts: dict[str, object]) -> None:
    content = {"machine": facts, "quick": quick, "rows": [_plain(row) for row in rows]}
    write_text(folder / f"{subject}.json", json.dumps(content, indent=1) + "\n")


def _plain(row: Row) -> dict:
    return asdict(row) | {"verdict": row.verdict}


def show(subject: str, rows: list[Row], facts: dict[str, object]) -> None:
    """Print a subject's table."""
    title = f"{subject}: {facts['cpu']}, {facts['threads']} thread, load {facts['load']}, {facts['gpu']}, torch {facts['torch']}"
    table = Table(title=title, title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("what", "against", "verdict") else "right")
    for row in rows:
        table.add_row(*cells(_plain(row)))
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table)
