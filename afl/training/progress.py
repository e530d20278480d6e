"""Shows the progress of a run: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class ProgressReport:
    """Shows step, loss, images per second, elapsed time and remaining time.

    Args:
        title: name of the run.
        total_steps: length of the run in optimiser steps.
        start_step: first step of this process.
        mode: ``bar``, ``lines``, ``none`` or ``auto``; ``auto`` shows a bar on a terminal and lines elsewhere, ``none`` shows nothing.
    """

    def __init__(self, *, title: str, total_steps: int, start_step: int, mode: str) -> None:
        if mode == "auto":
            mode = "bar" if sys.stderr.isatty() else "lines"
        self.title, self.total, self.mode = title, total_steps, mode
        self._start_step, self._started = start_step, time.perf_counter()
        self._bar: Progress | None = None
        self._speed = True
        if mode == "bar":
            console = Console(stderr=True)
            shown = self._fitting(console.width)
            self._speed = "speed" in shown
            columns: dict[str, list[ProgressColumn]] = {
                "title": [TextColumn("{task.description}", markup=False)],
                "bar": [BarColumn(bar_width=20)],
                "steps": [TextColumn("{task.completed}/{task.total}"), TextColumn("{task.fields[figures]}")],
                "elapsed": [TimeElapsedColumn(), TextColumn("elapsed,")],
                "left": [TimeRemainingColumn(), TextColumn("left")],
            }
            self._bar = Progress(
                *(one for part in columns if part in shown for one in columns[part]), console=console
            )
            self._task = self._bar.add_task(title, total=total_steps, completed=start_step, figures="")
            self._bar.start()

    def _fitting(self, width: int) -> list[str]:
        """The parts of the bar that fit into ``width`` columns. On a narrow terminal the first of these are left out: the bar,
        the speed, the title, the elapsed time."""
        widths = {
            "bar": 20, "speed": len("  1234 images/s"), "title": len(self.title), "elapsed": len("0:00:00 elapsed,"),
            "steps": len(f"{self.total}/{self.total} loss 0.123"), "left": len("0:00:00 left"),
        }  # fmt: skip
        parts = list(widths)
        while parts[2:] and sum(widths[part] + 1 for part in parts) > width + 1:
            parts.pop(0)
        return parts

    def advance(self, step: int) -> None:
        """Move the bar to ``step``."""
        if self._bar is not None:
            if not self._bar.live.is_started:
                self._bar.start()
            self._bar.update(self._task, completed=step)

    def show(self, step: int, loss: float, images_per_second: float) -> None:
        """Show the figures after ``step`` steps."""
        figures = f"loss {loss:.3f}" + (f"  {images_per_second:.0f} images/s" if self._speed else "")
        if self._bar is not None:
            self._bar.update(self._task, completed=step, figures=figures)
        elif self.mode == "lines":
            elapsed = time.perf_counter() - self._started
            left = elapsed / max(step - self._start_step, 1) * (self.total - step)
            print(
                f"{self.title}  step {step}/{self.total}  {figures}  {clock(elapsed)} elapsed, {clock(left)} left",
                flush=True,
            )

    def pause(self) -> None:
        """End the line of the bar, so that a message can follow; ``advance`` shows the bar again."""
        if self._bar is not None:
            self._bar.stop()

    close = pause


def clock(seconds: float) -> str:
    """A duration as ``4:05`` or ``1:04:05``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
