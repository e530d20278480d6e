"""The last lines that a run prints: its figures, its folder, and the commands to run next."""

from __future__ import annotations

import shlex
from pathlib import Path

from afl.tracking import Record
from afl.training.progress import clock

FIGURES = ("AP", "mAP50", "AP_r", "AP_c", "AP_f")


def ending(record: Record, folder: Path) -> str:
    """The figures of a finished run, by frequency group if the data set has groups, and the next two commands."""
    figures = "  ".join(
        f"{name} {percent(record.metrics[name])}"
        for name in FIGURES
        if name in record.metrics and (record.metrics[name] is not None or name == "AP")
    )
    run = shlex.quote(f"run={folder}")
    name = record.key.rpartition("-")[0]
    return "\n".join(
        [
            f"{name}  {figures}  ({clock(record.train_seconds or 0)} training, {clock(record.eval_seconds or 0)} evaluation)",
            f"  folder: {folder}",
            f"  AP of every class:      python -m scripts.evaluate {run}",
            f"  boxes on other images:  python -m scripts.predict {run} images=FOLDER",
        ]
    )


def percent(value: float | None) -> str:
    """A figure in [0, 1] as a percentage with one decimal."""
    return "undefined" if value is None else f"{100 * value:.1f}"
