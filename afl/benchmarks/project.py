"""The time of a clean clone: setup, training of the embedded table, and tests.

This takes half an hour, so it is only measured on request (``clone``).
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import tempfile
import time
from pathlib import Path

from afl.benchmarks.harness import Row

ROOT = Path(__file__).resolve().parents[2]
FIRST_MINUTES, TABLE_CORE_MINUTES, TEST_MINUTES = 6.0, 60.0, 10.0
FIRST = "set-up of a clean clone and the first cell of the table, minutes"
TESTS = "make test, minutes"
# Of this process alone, which the commands of a newcomer would not have.
_OWN_SETTINGS = ("MAKEFLAGS", "TORCH_CPP_LOG_LEVEL", "KINETO_LOG_LEVEL", "OMP_NUM_THREADS")
_FINISHED_CELL = re.compile(r"\[(\d+)/\d+\] ")


def clone(quick: bool, source: Path = ROOT) -> list[Row]:
    """Clone the last commit of ``source``, run ``make reproduce-table`` and ``make test`` in the clone, and measure the time.

    Raises:
        RuntimeError: one of them failed.
    """
    if quick:
        return []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(source), str(place)], check=True)
        before = _children_seconds()
        table, cells = _timed("reproduce-table", place)
        cores = _children_seconds() - before
        tests, _ = _timed("test", place)
    note = "make reproduce-table in a clean clone"
    return [
        _minutes(FIRST, cells[min(cells)], FIRST_MINUTES, note),
        _minutes(
            f"set-up of a clean clone and {max(cells)} cells of the table, core-minutes",
            cores,
            TABLE_CORE_MINUTES,
            note,
        ),
        _minutes(f"set-up of a clean clone and {max(cells)} cells of the table, minutes", table, None, note),
        _minutes(TESTS, tests, TEST_MINUTES, "in the same clone, after set-up"),
    ]


def _children_seconds() -> float:
    """Seconds of processor time of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _minutes(what: str, seconds: float, budget: float | None, note: str) -> Row:
    return Row(what, ours=seconds, ratio=seconds / 60, budget=budget, at_most=True, note=note)


def _timed(target: str, place: Path) -> tuple[float, dict[int, float]]:
    """Seconds of ``make target``, and the seconds after which it printed each number of finished runs."""
    environment = {name: value for name, value in os.environ.items() if name not in _OWN_SETTINGS}
    started = time.perf_counter()
    process = subprocess.Popen(
        ["make", target],
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    cells, said = {}, []
    for line in process.stdout:
        print(line, end="", flush=True)
        said.append(line)
        if found := _FINISHED_CELL.match(line):
            cells[int(found[1])] = time.perf_counter() - started
    seconds = time.perf_counter() - started
    if process.wait() or (target == "reproduce-table" and not cells):
        raise RuntimeError(f"make {target} failed in a clean clone: {''.join(said[-8:])}")
    return seconds, cells
