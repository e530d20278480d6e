"""This project against others on the same work, in one run on this machine.

    python -m scripts.benchmark                          # every subject of the next line
    python -m scripts.benchmark loss|step|eval|input|decode|project [...]
    python -m scripts.benchmark clone                    # an hour: set-up, table and tests of a clean clone
    python -m scripts.benchmark loss quick=true          # small sizes in seconds: whether it runs, not how fast
    python -m scripts.benchmark threads=2 results=FOLDER
    python -m scripts.benchmark profile [against=CHECKOUT] [steps=12] [rounds=3] [compiled=false]   # where a step's time goes

Prints a table of ours, theirs, ratio, memory, budget and verdict, and writes it as JSON with the machine's facts to
``results/benchmark/SUBJECT.json``, and all of them as a page to ``results/benchmark/README.md``. Times are medians of
repetitions that take turns; the other side is called from its own package. ``profile`` writes the page
``results/speed/README.md``; with ``against`` an older checkout is measured beside.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

# Before torch: its profiler reports memory that it did not see allocated, which is what peaks are measured above, and that
# there is no GPU.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from afl.tracking import write_text
from scripts.benchmarks import decode, evaluation, input_pipeline, loss, project, step_profile, training_step
from scripts.benchmarks.harness import Row, machine
from scripts.benchmarks.page import COLUMNS, cells, page_of
from scripts.entry import quiet_libraries

SUBJECTS: dict[str, Callable[[bool], list[Row]]] = {
    "loss": loss.measure,
    "step": training_step.measure,
    "eval": evaluation.measure,
    "input": input_pipeline.measure,
    "decode": decode.measure,
    "project": project.from_records,
    "clone": project.clone,
}
# Too long to be measured unasked.
ONLY_WHEN_NAMED = ("clone",)
DEFAULTS = {
    "quick": False,
    "threads": 1,
    "results": "results",
    "against": None,
    "steps": 12,
    "rounds": 3,
    "compiled": True,
}


def main(arguments: list[str]) -> None:
    """Subjects, or ``profile``, and ``name=value`` options; see the top of this file."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    quiet_libraries()
    warnings.filterwarnings("ignore")
    chosen = [argument for argument in arguments if "=" not in argument]
    given = OmegaConf.to_container(OmegaConf.from_dotlist([a for a in arguments if "=" in a]))
    unknown = sorted(set(given) - set(DEFAULTS)) + sorted(set(chosen) - set(SUBJECTS) - {"profile"})
    if unknown:
        known = ", ".join([*SUBJECTS, "profile", *(f"{name}=" for name in DEFAULTS)])
        sys.exit(f"the benchmark does not know {unknown[0]!r}; it takes {known}")
    options = DEFAULTS | given
    torch.set_num_threads(int(options["threads"]))
    if "profile" in chosen:
        folder = Path(options["results"]) / "speed"
        steps, rounds = int(options["steps"]), int(options["rounds"])
        compiled = bool(options["compiled"])
        print("written:", step_profile.write_page(folder, options["against"], steps, rounds, compiled))
        return
    folder = Path(options["results"]) / "benchmark" / ("quick" if options["quick"] else "")
    missed = 0
    for subject in chosen or [name for name in SUBJECTS if name not in ONLY_WHEN_NAMED]:
        rows = SUBJECTS[subject](bool(options["quick"]))
        if options["quick"]:  # budgets are for the real sizes
            rows = [replace(row, budget=None) for row in rows]
        facts = machine()
        show(subject, rows, facts)
        content = {"machine": facts, "quick": bool(options["quick"]), "rows": [_plain(row) for row in rows]}
        write_text(folder / f"{subject}.json", json.dumps(content, indent=1) + "\n")
        missed += sum(row.verdict == "missed" for row in rows)
    if not options["quick"]:
        write_text(folder / "README.md", page_of(folder, SUBJECTS))
        print(f"{missed} budgets missed" if missed else "every budget that this machine can measure is met")


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


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (OSError, ValueError, RuntimeError) as problem:
        sys.exit(str(problem))
