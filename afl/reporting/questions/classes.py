"""The classes whose AP a loss changes most."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from afl.reporting.frame import CLASS_AP
from afl.reporting.intervals import Estimate, estimate, paired_difference


def classes(own: pd.DataFrame, detectors: Sequence[str], losses: Sequence[str]) -> pd.DataFrame:
    """AP of every class, averaged over detectors, for the seeds at which each of ``losses`` has finished on every detector.

    Args:
        own: the long table of one data set.

    Returns:
        Rows (name, group), columns (loss, seed); NaN if a detector has no AP of the class; ``group`` is empty if it
        changes with the seed. Classes that one of the losses has at no seed are left out.
    """
    own = own[own.loss.isin(losses) & own.detector.isin(detectors)]
    runs = own.groupby("unit").key.nunique()
    own = own[(own.metric == CLASS_AP) & own.unit.isin(runs[runs == len(losses) * len(detectors)].index)]
    group = own.groupby("name").group.agg(lambda found: found.iloc[0] if found.nunique() == 1 else "")
    values = own.groupby(["name", "loss", "unit"], sort=False).value.agg(["mean", "count"])
    wide = values["mean"].where(values["count"] == len(detectors)).unstack(["loss", "unit"])
    wide = wide.reindex(columns=sorted(wide.columns, key=lambda pair: (losses.index(pair[0]), pair[1])))
    wide = wide[[all(row[loss].notna().any() for loss in losses) for _, row in wide.iterrows()]]
    return wide.set_axis(pd.MultiIndex.from_arrays([wide.index, group[wide.index]], names=["name", "group"]))


def most_moved(found: pd.DataFrame, baseline: str, shown: int) -> pd.DataFrame:
    """The ``shown`` classes whose AP some loss moves farthest from the baseline, and below them the mean over all others."""
    losses = found.columns.unique("loss")

    def distance(row: pd.Series) -> float:
        return max(abs(moved_by(row, loss, baseline).mean) for loss in losses)

    order = sorted(found.index, key=lambda place: (-distance(found.loc[place]), place[0]))
    first, others = found.loc[order[:shown]], found.loc[order[shown:]]
    if others.empty:
        return first
    mean = others.mean(skipna=False).to_frame((f"mean of the other {len(others)}", "")).T
    return pd.concat([first, mean.rename_axis(found.index.names)])


def mean_of(row: pd.Series, loss: str) -> Estimate | None:
    """Mean over seeds of a row of ``classes``."""
    return estimate(row[loss].dropna().tolist())


def moved_by(row: pd.Series, loss: str, baseline: str) -> Estimate | None:
    """Paired difference to the baseline of a row of ``classes``."""
    return paired_difference(row[loss].dropna().to_dict(), row[baseline].dropna().to_dict())
