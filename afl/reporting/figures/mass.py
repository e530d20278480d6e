"""The gradient mass of FL, CBL and AFL over the training, from records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from afl.evaluation import GROUP_NAMES
from afl.reporting.figures.style import BLUE, GREEN, ORANGE, RECONSTRUCTION, WIDTH, styled
from afl.reporting.records import one_per_cell, variants_of
from afl.tracking import FINISHED, Record, mass_curves, names_afl

MASS_LOSSES = {"fl": ("FL", BLUE, "-"), "cbl": ("CBL", ORANGE, "--"), "afl": ("AFL", GREEN, "-.")}


def draw_gradient_mass(records: Sequence[Record]) -> dict[str, Figure]:
    """Sum of |dL/dz| over the training by frequency group, of positives and of negatives: one figure for each data set and
    detector, one line for each of FL, CBL and AFL, mean over seeds and variants of the data set.

    Returns:
        Figures by ``DATASET-DETECTOR``; empty if no finished record of these losses has gradient dynamics.
    """
    variants = variants_of(records)
    cells: dict[str, dict[str, list[dict[str, list[float]]]]] = {}
    for record in one_per_cell(records, variants).values():
        # Pre-training runs give the starting weights of all losses.
        if record.dataset.endswith("_pretraining"):
            continue
        if record.status == FINISHED and record.loss in MASS_LOSSES and record.gradient_dynamics:
            place = cells.setdefault(f"{record.dataset}-{record.detector}", {})
            place.setdefault(record.loss, []).append(mass_curves(record.gradient_dynamics))
    return {
        place: _mass_figure(place, losses, "unit" if place.rpartition("-")[0] in variants else "seed")
        for place, losses in cells.items()
    }


def _mass_figure(
    place: str, losses: Mapping[str, Sequence[Mapping[str, list[float]]]], repetition: str
) -> Figure:
    keys = {key for runs in losses.values() for run in runs for key in run}
    groups = [group for group in GROUP_NAMES if any(key.endswith(f"/{group}") for key in keys)]
    dataset, detector = place.rsplit("-", 1)
    with styled():
        figure = Figure(figsize=(WIDTH, 3.1))
        axes = figure.subplots(2, len(groups), sharex=True, sharey="row", squeeze=False)
        gaps = False
        for row, sign in zip(axes, ("positive", "negative"), strict=True):
            for axis, group in zip(row, groups, strict=True):
                for loss, (label, color, line) in MASS_LOSSES.items():
                    runs = [
                        run[f"{sign}/{group}"] for run in losses.get(loss, ()) if f"{sign}/{group}" in run
                    ]
                    if runs:
                        progress, mean = _mean_over_runs(runs)
                        gaps = gaps or bool(np.isnan(mean).any())
                        axis.plot(
                            progress,
                            mean,
                            color=color,
                            linestyle=line,
                            marker=".",
                            markersize=2.5,
                            label=label,
                        )
                axis.set(yscale="log", xlim=(0, 100), xticks=(0, 50, 100))
            row[0].set_ylabel(f"{sign}s")
        for axis, group in zip(axes[0], groups, strict=True):
            axis.set_title(GROUP_NAMES[group])
        axes[1, len(groups) // 2].set_xlabel("training, %")
        shown = f"\n({RECONSTRUCTION})" if any(map(names_afl, losses)) else ""
        figure.suptitle(f"Sum of |∂L/∂z| in a step, {detector} on {dataset}{shown}")
        handles = {
            label: line
            for axis in axes.flat
            for line, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        note = "gap: no such object in the steps recorded" if gaps else None
        numbers = {MASS_LOSSES[loss][0]: len(runs) for loss, runs in losses.items()}
        names = [f"{name}, {numbers[name]} {repetition}{'s' * (numbers[name] > 1)}" for name in handles]
        figure.legend(handles.values(), names, loc="outside lower center", ncols=3, title=note)
    return figure


def _mean_over_runs(runs: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Middle of each part of the training in percent, and the mean over runs at it. Runs of different schedules may have
    different numbers of parts; all are read at the parts of the longest."""
    longest = max(len(run) for run in runs)
    middles = [(np.arange(len(run)) + 0.5) / len(run) * 100 for run in runs]
    progress = (np.arange(longest) + 0.5) / longest * 100
    values = [np.interp(progress, middle, run) for middle, run in zip(middles, runs, strict=True)]
    # A group without a gradient cannot be drawn on a logarithmic axis.
    mean = np.mean(values, 0)
    return progress, np.where(mean > 0, mean, np.nan)
