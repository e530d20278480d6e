"""Evaluate the weights of a run again, or other weights under its config.

    python -m scripts.evaluate run=outputs/shapes_lvis-centernet-fl-s0-1a2b3c4d
    python -m scripts.evaluate run=... checkpoint=weights.pt trainer.evaluator=official
    python -m scripts.evaluate run=... dataset.root=/data/moved
    python -m scripts.evaluate run=... both=true

Options:
    run=FOLDER         the run directory
    checkpoint=FILE    weights to use instead of the run's last checkpoint
    both=true          compare the official packages with the fast evaluator on the run's detections; writes no file

Other arguments change the run's config for this evaluation, for example:
    dataset.root=FOLDER              the current folder of the data set
    dataset.policy=skip              leave out records with defects
    dataset.max_detections=300       largest number of boxes per image
    detector.score_threshold=0.01    smallest score of a box
    trainer.evaluator=official       pycocotools and lvis instead of hotcoco
    trainer.test_time.flip=true      add a mirrored view of every image
    trainer.eval_batch_size=8        images in a pass
    trainer.device=cpu               auto, cpu or cuda

Overrides have the same effect as in training: settings that refer to a changed setting change with it. Figures are printed and
written to evaluation.json in the run directory. The run's record does not change.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from afl.config import read_config
from scripts.entry import asks_for_help, own_options, printable, quiet_libraries, run_command

# Settings that change which boxes a run detects, or on which images.
DETECTING = (
    "detector", "loss", "backbone", "subset", "trainer.test_time", "trainer.fixed_detections", "dataset.image_size",
    "dataset.eval_transform", "dataset.max_detections", "dataset.val",
)  # fmt: skip
DEFAULTS = {"run": None, "checkpoint": None, "both": False}


def main(arguments: list[str]) -> None:
    """Evaluate ``run=FOLDER``, write its figures and print them."""
    if asks_for_help(arguments, __doc__):
        return
    options, overrides = own_options(arguments, DEFAULTS)
    if not options["run"]:
        raise ValueError("which run? python -m scripts.evaluate run=outputs/NAME")
    folder, checkpoint = Path(options["run"]), options["checkpoint"]
    read_config(folder, overrides)  # mistakes in the arguments end the command before it loads torch

    import logging

    from afl.tracking import write_json
    from afl.training.distributed import leave_world
    from afl.training.evaluation import evaluate_run, evaluate_with_both
    from afl.training.load import load_run

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    quiet_libraries()
    if options["both"]:
        _require_kept_detections(checkpoint, overrides)
        show_both(evaluate_with_both(folder, overrides), folder)
        return
    run = load_run(folder, overrides, Path(checkpoint) if checkpoint else None)
    metrics = evaluate_run(run, folder, "evaluation_detections.json")
    if metrics:
        head = {"checkpoint": str(run.checkpoint), "step": run.step, "overrides": overrides}
        write_json(folder / "evaluation.json", {**head, **metrics})
        groups = dict(zip(run.data.statistics.names, run.data.statistics.groups, strict=True))
        show(metrics, groups, str(run.checkpoint))
    leave_world()


def _require_kept_detections(checkpoint: str | None, overrides: Sequence[str]) -> None:
    """Reject what would change the detections, which ``both=true`` takes from the run."""
    names = [text.lstrip("+~").partition("=")[0] for text in overrides]
    given = ["checkpoint"] if checkpoint else []
    given += [name for name in names if name.startswith(DETECTING)]
    if given:
        raise ValueError(
            f"both=true compares the evaluators on the run's detections, which {', '.join(given)} cannot change; leave it out, or leave "
            "out both=true to detect again"
        )


def show(metrics: Mapping, groups: Mapping[str, str], title: str) -> None:
    """Print overall figures and AP by class. Names are not parsed as markup."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    # As the title of a table, it would be broken at the width of the table.
    console.print(Text(printable(title)), soft_wrap=True)
    overall = Table("metric")
    overall.add_column("x 100", justify="right")
    for name, value in metrics.items():
        if name != "per_class":
            overall.add_row(name, _percent(value))
    console.print(overall)
    classes = Table("class", "group", "AP")
    for name, value in sorted(
        metrics["per_class"].items(), key=lambda item: -1 if item[1] is None else item[1]
    ):
        classes.add_row(Text(printable(name)), groups[name], _percent(value))
    console.print(classes)


def show_both(figures: Mapping[str, Mapping], folder: Path) -> None:
    """Print the figures of each evaluator and the largest difference between them, classes included."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    console.print(Text(printable(str(folder))), soft_wrap=True)
    table = Table("metric", *figures, "difference")
    one, other = figures.values()
    for name, value in one.items():
        if name != "per_class":
            table.add_row(
                name, _percent(value), _percent(other[name]), f"{_difference(value, other[name]):.1e}"
            )
    pairs = [(value, other["per_class"][name]) for name, value in one["per_class"].items()]
    largest = max((_difference(*pair) for pair in pairs), default=0.0)
    table.add_row(f"AP of {len(pairs)} classes", "", "", f"{largest:.1e}")
    console.print(table)


def _difference(one: float | None, other: float | None) -> float:
    """The difference of two figures; 0 if both are None, 1 if one of them is."""
    if one is None or other is None:
        return float((one is None) != (other is None))
    return abs(one - other)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


if __name__ == "__main__":
    run_command(main)
