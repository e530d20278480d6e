"""The interface between a run and its tracker: figures, pictures, tables and charts; and a tracker that ignores them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Picture:
    """One image with its n objects and m detections.

    Attributes:
        name: its name in the gallery; the same image has the same name at every step.
        pixels: (H, W, 3) uint8 RGB.
        boxes: (n, 4) xyxy in pixels of ``pixels``; labels: (n,).
        found_boxes: (m, 4); found_scores: (m,); found_labels: (m,).
    """

    name: str
    pixels: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    found_boxes: np.ndarray
    found_scores: np.ndarray
    found_labels: np.ndarray


@dataclass(frozen=True)
class Chart:
    """The rows of a chart that W&B draws.

    Attributes:
        kind: ``lines``: rows of line, x, y; ``confusion``: rows of true class, detected class, count.
        title: above it.
        columns: three names, in the order of a row.
        rows: three values each.
    """

    kind: str
    title: str
    columns: tuple[str, str, str]
    rows: Sequence[tuple[Any, Any, Any]]


class Tracker:
    """Receives figures and pictures of a run. No method may raise; those of this class do nothing."""

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Numbers by name; a tensor or array of several values becomes a histogram."""

    def log_pictures(self, step: int, pictures: Sequence[Picture]) -> None:
        """Images with boxes, the same images at every step."""

    def log_table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table, for example of AP by class."""

    def log_charts(self, step: int, charts: Mapping[str, Chart]) -> None:
        """Charts by name."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Final figures."""

    def finish(self, failed: bool = False) -> None:
        """Called at the end of the run."""


class NullTracker(Tracker):
    """Ignores everything: for ``logger=none``, and for all processes but the first. Accepts the arguments of the other trackers."""

    def __init__(self, **about: Any) -> None:
        pass
