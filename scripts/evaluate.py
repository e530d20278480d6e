"""Evaluate the weights of a run again, or other weights under its config.

    python -m scripts.evaluate run=outputs/shapes_lvis-centernet-fl-s0-1a2b3c4d
    python -m scripts.evaluate run=... checkpoint=weights.pt trainer.evaluator=fast

``run`` is a run directory. Everything else on the command line changes its config for this evaluation. Figures are printed
and written to ``evaluation.json`` in the run directory; the record stays as it is.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from afl.tracking import write_json
from afl.training import ConfigError
from afl.training.checkpoint import CheckpointError
from afl.training.distributed import leave_world
from afl.training.load import load_run
from afl.training.run import evaluate_run
from datasets import DataError
from scripts.entry import asks_for_help, quiet_libraries


def main(arguments: list[str]) -> None:
    """Evaluate ``run=FOLDER`` and print its figures."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if asks_for_help(arguments, __doc__):
        return
    quiet_libraries()
    given = OmegaConf.from_dotlist([a.lstrip("+") for a in arguments])
    if "run" not in given:
        sys.exit("which run? python -m scripts.evaluate run=outputs/NAME")
    folder, checkpoint = Path(given.pop("run")), given.pop("checkpoint", None)
    run = load_run(folder, given, Path(checkpoint) if checkpoint else None)
    metrics = evaluate_run(run, folder, "evaluation_detections.json")
    if metrics:
        groups = dict(zip(run.data.statistics.names, run.data.statistics.groups, strict=True))
        show(metrics, groups, str(run.checkpoint))
        write_json(
            folder / "evaluation.json", {"checkpoint": str(run.checkpoint), "step": run.step, **metrics}
        )
    leave_world()


def show(metrics: dict, groups: dict[str, str], title: str) -> None:
    """Print overall figures and AP by class."""
    console = Console()
    overall = Table(title=title, title_justify="left")
    for name in metrics:
        if name != "per_class":
            overall.add_column(name, justify="right")
    overall.add_row(*(_percent(value) for name, value in metrics.items() if name != "per_class"))
    console.print(overall)
    classes = Table("class", "group", "AP")
    for name, value in sorted(
        metrics["per_class"].items(), key=lambda item: -1 if item[1] is None else item[1]
    ):
        classes.add_row(name, groups[name], _percent(value))
    console.print(classes)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (CheckpointError, ConfigError, DataError, ValueError) as problem:
        sys.exit(str(problem))
