"""Gradients of positives and AFL's gate over the training, from the steps that a run logs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from afl.reporting.names import GROUPS
from afl.tracking import OBJECTNESS

QUARTERS = {"a quarter": 0.25, "half": 0.5, "three quarters": 0.75, "all": 1.0}


def push_ratios(found: pd.DataFrame, losses: Sequence[str], baseline: str) -> pd.DataFrame:
    """The gradient of each loss on the positives of a frequency group, as a multiple of the baseline's on the same data and seeds:

        ratio = sum over seeds of S_loss / sum over seeds of S_baseline,    S: sum of |dL/dz| over the group's positives

    S is summed over a detector's maps, before the normaliser. It is measured only in logged batches, one in every
    ``trainer.log_every`` steps, and is the mean over those of a part: with ten parts of 17 logged batches, one or two.

    Returns:
        Rows (detector, loss, part), columns r, c, f and ``step``, the last logged step of the part; NaN if the baseline's positives
        have no gradient, or a logged part has no positive of the group.
    """
    own = found[found.metric == "positive"]
    sums = own.pivot_table(
        index=["detector", "part", "group"],
        columns=["loss", "dataset", "unit"],
        values="value",
        aggfunc="sum",
        sort=False,
    )
    steps = own.groupby(["detector", "part"]).step.first()
    tables = []
    for detector in own.detector.unique():
        mass = sums.loc[[detector]].dropna(axis=1, how="all")
        for loss in losses:
            units = [
                unit for name, *unit in mass.columns if name == loss and (baseline, *unit) in mass.columns
            ]
            if units:
                pushed, by = (
                    mass[[(name, *unit) for unit in units]].sum(axis=1) for name in (loss, baseline)
                )
                ratio = (pushed / by.where(by > 0)).unstack("group").reindex(columns=list(GROUPS))
                tables.append(ratio.assign(step=steps[ratio.index], loss=loss))
    if not tables:
        return pd.DataFrame()
    return pd.concat(tables).reset_index().set_index(["detector", "loss", "part"])


def push_over_training(found: pd.DataFrame, losses: Sequence[str], baseline: str) -> pd.DataFrame:
    """``push_ratios``, thus from logged batches only, averaged over the detectors that have one (geometric mean).

    Returns:
        Rows (loss, part), columns r, c, f and ``middle``, the middle of the part in percent of the training.
    """
    ratios = push_ratios(found, losses, baseline)
    if ratios.empty:
        return ratios
    groups = ratios[list(GROUPS)]
    mean = np.exp(np.log(groups.where(groups > 0)).groupby(level=["loss", "part"], sort=False).mean())
    parts = mean.index.get_level_values("part") + 0.5
    return mean.assign(middle=100 * parts / (mean.index.get_level_values("part").max() + 1))


def gate_opening(found: pd.DataFrame, loss: str) -> pd.DataFrame:
    """Kappa of AFL's gate near each quarter of the training, mean over seeds and maps of classes: 1 is closed, 0 is open.

    A map of objectness has no classes, so its gate has a separate row. Records keep means over tenths of the training; a quarter
    takes the tenth whose last step is nearest.

    Returns:
        Rows: detectors with a kappa on record; columns: ``QUARTERS``.
    """
    own = found[(found.metric == "kappa") & (found.loss == loss)]
    apart = own["name"] == OBJECTNESS
    rows = []
    for of_objectness in (False, True):
        for (detector, _), run in own[apart == of_objectness].groupby(["detector", "key"], sort=False):
            kappa = run.groupby("step").value.mean()
            nearest = [abs(kappa.index - part * kappa.index.max()).argmin() for part in QUARTERS.values()]
            row = f"{detector}, {OBJECTNESS}" if of_objectness else detector
            rows.append({"detector": row, **dict(zip(QUARTERS, kappa.iloc[nearest], strict=True))})
    if not rows:
        return pd.DataFrame(columns=list(QUARTERS))
    return pd.DataFrame(rows).groupby("detector", sort=False).mean()
