"""What a person sees of a run: a bar on a terminal, plain lines elsewhere, nothing on other ranks."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

MODES = ("auto", "bar", "lines", "none")


class ProgressReport:
    """Shows step, loss, images per second and time left.

    Args:
        title: name of the run.
        total_steps: length of the run in optimiser steps; start_step: where it begins.
        mode: one of ``MODES``; ``auto`` is a bar on a terminal and lines elsewhere.
    """

    def __init__(self, *, title: str, total_steps: int, start_step: int, mode: str) -> None:
        if mode not in MODES:
            raise ValueError(f"trainer.progress is {mode!r}; known are {', '.join(MODES)}")
        if mode == "auto":
            mode = "bar" if sys.stderr.isatty() else "lines"
        self.title, self.total, self.mode = title, total_steps, mode
        self._start_step, self._started = start_step, time.perf_counter()
        self._bar: Progress | None = None
        if mode == "bar":
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.fields[state]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(title, total=total_steps, completed=start_step, state="")
            self._bar.start()

    def update(self, step: int, loss: float, images_per_second: float) -> None:
        """Report that ``step`` steps are done."""
        if self._bar is not None:
            state = f"loss {loss:.3f}  {images_per_second:.0f} images/s"
            self._bar.update(self._task, completed=step, state=state)
        elif self.mode == "lines":
            done = max(step - self._start_step, 1)
            left = (time.perf_counter() - self._started) / done * (self.total - step)
            print(
                f"{self.title}  step {step}/{self.total}  loss {loss:.3f}  {images_per_second:.0f} images/s  "
                f"{_clock(left)} left",
                flush=True,
            )

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
