"""Writes a run to files of other tools: a CSV table for spreadsheets and pandas, and TensorBoard's event files.

``metrics.jsonl`` and the record do not depend on these files. A failure is reported once, in one line, and training continues. A run
that continues from a checkpoint repeats the steps after it, which replace the earlier ones.
"""

from __future__ import annotations

import csv
import functools
import io
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from afl.tracking.record import flat
from afl.tracking.tracker import Chart, NullTracker, Picture
from datasets.errors import explained
from datasets.files import write_bytes

log = logging.getLogger(__name__)
FEWEST_SCORE = 0.3  # least score of a box in a picture


def _safe(method: Callable) -> Callable:
    """Wrap a method so that its first failure gives one warning and switches the tracker off."""

    @functools.wraps(method)
    def guarded(self: _FileTracker, *arguments: Any, **named: Any) -> None:
        if self.failed:
            return
        try:
            method(self, *arguments, **named)
        except Exception as error:
            self.failed = True
            message = " ".join(f"{type(error).__name__}: {explained(error)}".split())[:200]
            log.warning(
                "%s could not %s (%s); the run continues without it", self.title, method.__name__, message
            )

    return guarded


class _FileTracker(NullTracker):
    title = ""
    failed = False


class CsvTracker(_FileTracker):
    """``curves.csv`` in the run directory: columns step, name, value, one row for each number; and a CSV file for each table.

    The long form takes any set of figures; ``pandas.read_csv(...).pivot(index="step", columns="name", values="value")`` is the wide one.
    """

    title = "the CSV log"

    def __init__(self, *, directory: str | Path, **about: Any) -> None:
        """
        Args:
            directory: the run directory.
            about: arguments of other trackers, which are ignored.
        """
        self._folder = Path(directory)
        self._path = self._folder / "curves.csv"
        self._file: Any = None

    @_safe
    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Append the numbers among ``values``."""
        numbers = _numbers(values)
        if self._file is None:
            self._file = self._opened(step, numbers)
        rows = csv.writer(self._file)
        for name, value in numbers.items():
            rows.writerow([step, name, f"{value:.9g}"])
        self._file.flush()

    @_safe
    def log_table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Write the file ``NAME.csv``, with dashes instead of slashes in ``name``."""
        with open(self._folder / f"{name.replace('/', '-')}.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([columns, *rows])

    @_safe
    def finish(self, failed: bool = False) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _opened(self, step: int, replaced: Collection[str]) -> Any:
        """Open the file for appending, without the rows of an earlier attempt after ``step``, and of the ``replaced`` names at ``step``."""
        self._folder.mkdir(parents=True, exist_ok=True)
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["step", "name", "value"])
        if self._path.exists():
            with open(self._path, newline="", encoding="utf-8") as file:
                for row in list(csv.reader(file))[1:]:
                    whole = len(row) == 3 and row[0].isdigit()  # a killed attempt may leave an incomplete row
                    if whole and (int(row[0]) < step or int(row[0]) == step and row[1] not in replaced):
                        writer.writerow(row)
        write_bytes(self._path, text.getvalue().encode())
        return open(self._path, "a", newline="", encoding="utf-8")


class TensorBoardTracker(_FileTracker):
    """Event files in ``tensorboard/`` of the run directory: ``tensorboard --logdir outputs`` compares runs.

    Curves over optimiser steps, histograms, validation images with objects and detections, tables as text, and precision over
    recall in percent.
    """

    title = "TensorBoard"

    def __init__(
        self,
        *,
        directory: str | Path,
        config: Mapping[str, Any] | None = None,
        class_names: Sequence[str] = (),
        **about: Any,
    ) -> None:
        """
        Args:
            directory: the run directory.
            config: shown as text.
            class_names: (C,) for the boxes of pictures.
            about: arguments of other trackers, which are ignored.
        """
        self._folder = Path(directory) / "tensorboard"
        self._config = dict(config or {})
        self._names = list(class_names)
        self._writer: Any = None

    @_safe
    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Numbers by name; a tensor or array of several values becomes a histogram of its finite ones."""
        writer = self._opened(step)
        for name, value in _numbers(values).items():
            writer.add_scalar(name, value, step)
        for name, array in _several(values).items():
            writer.add_histogram(name, array, step)

    @_safe
    def log_pictures(self, step: int, pictures: Sequence[Picture]) -> None:
        """Each image twice: with its objects and with its detections."""
        writer = self._opened(step)
        for picture in pictures:
            sure = np.asarray(picture.found_scores) >= FEWEST_SCORE
            for what, boxes, labels in (
                ("objects", picture.boxes, picture.labels),
                ("detections", np.asarray(picture.found_boxes)[sure], np.asarray(picture.found_labels)[sure]),
            ):
                writer.add_image_with_boxes(
                    f"images/{picture.name}/{what}",
                    np.asarray(picture.pixels),
                    np.asarray(boxes, float).reshape(-1, 4),
                    step,
                    dataformats="HWC",
                    labels=[self._name(int(label)) for label in labels] or None,
                )

    @_safe
    def log_table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """The table as Markdown text."""
        self._opened(step).add_text(name, _markdown(columns, rows), step)

    @_safe
    def log_charts(self, step: int, charts: Mapping[str, Chart]) -> None:
        """Lines as curves over their x in percent, confusion as a table."""
        writer = self._opened(step)
        for name, chart in charts.items():
            if chart.kind == "lines":
                for line, x, y in chart.rows:
                    writer.add_scalar(f"val_charts/{name}/{line}", y, round(100 * x))
            else:
                writer.add_text(f"val_charts/{name}", _markdown(chart.columns, chart.rows), step)

    @_safe
    def finish(self, failed: bool = False) -> None:
        """Write pending events and close the files."""
        if self._writer is not None:
            self._writer.close()

    def _opened(self, step: int) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # a second of import, only where it is used

            # Events of an earlier attempt from this step on are hidden.
            self._writer = SummaryWriter(str(self._folder), purge_step=step)
            rows = sorted(flat(self._config).items())
            self._writer.add_text("config", _markdown(("setting", "value"), rows), step)
        return self._writer

    def _name(self, label: int) -> str:
        return self._names[label] if label < len(self._names) else str(label)


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite single numbers."""
    found = {}
    for name, value in values.items():
        if value is not None and not isinstance(value, str):
            number = _array(value)
            if number.size == 1 and np.isfinite(number).all():
                found[name] = float(number[0])
    return found


def _several(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The finite values of tensors and arrays with more than one."""
    arrays = {
        name: _array(value)
        for name, value in values.items()
        if value is not None and not isinstance(value, str)
    }
    finite = {name: array[np.isfinite(array)] for name, array in arrays.items() if array.size > 1}
    return {name: array for name, array in finite.items() if array.size}


def _array(value: Any) -> np.ndarray:
    return np.asarray(value.detach().float().cpu() if hasattr(value, "detach") else value, float).ravel()


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "/") for cell in line) + " |" for line in lines)
