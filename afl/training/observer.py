"""Observes a run: writes its curves, updates its tracker and progress bar, and evaluates between steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from afl.tracking import MetricsLog, Tracker, overview, read_metrics
from afl.training.evaluation import Evaluation
from afl.training.learner import Learner
from afl.training.loop import Observer
from afl.training.progress import ProgressReport


class RunObserver(Observer):
    """Writes figures to the curves and the tracker, moves the progress bar, and evaluates.

    Args:
        curves: None except on the first process.
        evaluation: of the detector that ``learner`` trains.
    """

    def __init__(
        self,
        *,
        curves: MetricsLog | None,
        tracker: Tracker,
        progress: ProgressReport,
        evaluation: Evaluation,
        learner: Learner,
    ) -> None:
        self._curves, self._tracker, self._progress = curves, tracker, progress
        self._evaluation, self._learner = evaluation, learner

    def stepped(self, step: int) -> None:
        self._progress.advance(step)

    def logged(self, step: int, figures: dict[str, float]) -> None:
        self.write(step, figures)
        self._progress.show(step, figures["loss/total"], figures["images_per_second"])

    def evaluate(self, step: int) -> None:
        metrics, _ = self._evaluation(self._learner.evaluated)
        if self._curves is not None:
            self.write_metrics(step, metrics)

    def stopping(self) -> None:
        self._progress.pause()

    def show_curves(self, path: Path) -> None:
        """Send the curves in a file to the tracker."""
        for line in read_metrics(path):
            self._show(line.pop("step"), line)

    def write(self, step: int, figures: Mapping[str, Any]) -> None:
        """Write the figures of a step; only on the first process."""
        self._curves.log(step, figures)
        self._show(step, figures)

    def _show(self, step: int, figures: Mapping[str, Any]) -> None:
        self._tracker.log(step, {**overview(figures), **figures})

    def write_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write the metrics of an evaluation; only on the first process."""
        self.write(step, {f"val/{name}": value for name, value in metrics.items() if name != "per_class"})
