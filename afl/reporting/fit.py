"""How far a table's losses fit the images they were trained on, beside images they have not seen.

A class that is poor on both was not learnt, for which a loss can be the reason; one that is good on training images alone
was learnt and does not carry over, which no weight on its gradient mends.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from afl.reporting.intervals import rounded
from afl.reporting.table import AVERAGE
from afl.tracking import FINISHED, Record

Figures = Mapping[str, float | None]
"""Metrics in [0, 1] by name."""


def rows_of(
    records: Iterable[Record],
    on_training_images: Mapping[str, Figures],
    losses: Sequence[str],
    metric: str,
) -> dict[str, list[tuple[float, float]]]:
    """Means over the seeds for which every loss was measured, and over detectors below them.

    Args:
        records: of one data set.
        on_training_images: by run key.

    Returns:
        By detector, for each loss: the metric on training and on validation images, x 100.
    """
    runs: dict[tuple[str, str], dict[int, tuple[float, float]]] = {}
    for record in records:
        seen, new = on_training_images.get(record.key, {}).get(metric), record.metrics.get(metric)
        if record.status == FINISHED and record.loss in losses and seen is not None and new is not None:
            runs.setdefault((record.detector, record.loss), {})[record.seed] = (100 * seen, 100 * new)
    rows = {}
    for detector in dict.fromkeys(detector for detector, _ in runs):
        of_losses = [runs.get((detector, loss), {}) for loss in losses]
        seeds = sorted(set.intersection(*(set(own) for own in of_losses)))
        if seeds:
            rows[detector] = [_mean([own[seed] for seed in seeds]) for own in of_losses]
    if len(rows) > 1:
        rows[AVERAGE] = [_mean(own) for own in zip(*rows.values(), strict=True)]
    return rows


def _mean(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    seen, new = (math.fsum(values) / len(pairs) for values in zip(*pairs, strict=True))
    return seen, new


def to_markdown(rows: Mapping[str, Sequence[tuple[float, float]]], losses: Sequence[str], metric: str) -> str:
    """Detectors by training images and validation images; behind the first loss each has its difference to it."""
    head = [f"{where}: {loss}" for where in ("training images", "validation") for loss in losses]
    lines = [f"| {metric} | " + " | ".join(head) + " |", "| --- |" + " ---: |" * len(head)]
    for detector, pairs in rows.items():
        places = []
        for values in zip(*pairs, strict=True):
            places += [
                rounded(values[0]),
                *(f"{rounded(value)} ({rounded(value - values[0], '+')})" for value in values[1:]),
            ]
        lines.append(f"| {detector} | " + " | ".join(places) + " |")
    return "\n".join(lines)
