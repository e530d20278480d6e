"""Questions to the records of a table. Each is one function from the long table (``afl.reporting.frame``) to a small one.

Write a new question here and its text in ``afl.reporting.answers``; the command is one function in ``scripts/reports``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from afl.reporting.frame import AVERAGE, CLASS_AP
from afl.reporting.inference import Difference, difference, holm
from afl.reporting.intervals import Estimate, estimate, paired_difference, t_quantile
from afl.reporting.names import GROUPS
from afl.reporting.table import Table

QUARTERS = {"a quarter": 0.25, "half": 0.5, "three quarters": 0.75, "all": 1.0}
CHOICE_METRICS = ("AP", "AP_r")

# ---- noise and contrasts ----------------------------------------------------------------------------------------------------


def noise(table: Table) -> pd.DataFrame:
    """How much a figure of a table changes when only the seed changes, pooled over the losses of a row.

        spread^2 = sum over losses and seeds of (x - mean of the loss)^2 / sum over losses of (n - 1)
        paired^2 = the same of the differences to the baseline by seed

    A loss alone has three to five seeds, too few for its own standard deviation.

    Returns:
        By row (data set, detector) and metric: ``spread`` and ``paired``, NaN where no loss has two seeds, and ``freedom``, the
        degrees of freedom of ``spread``.
    """
    wide = _by_loss(table)
    base = wide[table.spec.baseline]
    found = {}
    for place, own in wide.groupby(level=["dataset", "detector", "metric"], sort=False):
        moved = own.drop(columns=table.spec.baseline).sub(base.loc[own.index], axis=0)
        spread, freedom = pooled_deviation(own)
        found[place] = {"spread": spread, "paired": pooled_deviation(moved)[0], "freedom": freedom}
    return pd.DataFrame.from_dict(found, orient="index").rename_axis(["dataset", "detector", "metric"])


def pooled_deviation(columns: pd.DataFrame) -> tuple[float, int]:
    """Standard deviation within the columns and its degrees of freedom; NaN and 0 where no column has two values."""
    freedom = int((columns.count() - 1).clip(lower=0).sum())
    squares = float(((columns - columns.mean()) ** 2).sum().sum())
    return (math.sqrt(squares / freedom) if freedom else math.nan), freedom


def half_width(paired: float, seeds: int) -> float:
    """Half-width of the 95 % interval of a paired difference over ``seeds`` seeds: t(0.975, n - 1) d / sqrt(n)."""
    return t_quantile(seeds - 1) * paired / math.sqrt(seeds)


def contrast(table: Table, loss: str, against: str) -> dict[tuple[str, str], dict[str, Estimate | None]]:
    """Paired differences of ``loss`` to ``against`` by seed, for each row (data set, detector) and metric.

    Raises:
        ValueError: the table does not have one of the losses.
    """
    table.spec.require_losses((loss, against))
    found: dict[tuple[str, str], dict[str, Estimate | None]] = {}
    for block in table.blocks:
        own = table.frame[(table.frame.dataset == block.dataset) & (table.frame.metric == block.metric)]
        for row in block.rows:
            one, other = (
                own[(own.detector == row) & (own.loss == name)].set_index("unit").value.to_dict()
                for name in (loss, against)
            )
            found.setdefault((block.dataset, row), {})[block.metric] = paired_difference(one, other)
    return found


def contrasts(table: Table, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str, str], Difference]:
    """The family of contrasts of a table: for each pair of losses and each metric, over all detectors and units (data set, seed)
    for which every detector has both losses. Contrasts without such a unit are left out.

    Raises:
        ValueError: the table does not have one of the losses.
    """
    table.spec.require_losses(name for pair in pairs for name in pair)
    wide = _by_loss(table)
    found = {}
    for loss, against in pairs:
        moved = (wide[loss] - wide[against]).unstack(["dataset", "unit"])
        for metric in table.spec.metrics:
            layout = moved.xs(metric, level="metric").drop(AVERAGE, errors="ignore")
            layout = layout.reindex(list(table.spec.detectors)).dropna(axis=1)
            if layout.shape[1]:
                found[loss, against, metric] = difference(layout.to_numpy())
    return found


def family(table: Table, loss: str) -> tuple[list[tuple[str, str]], str | None]:
    """The contrasts of ``loss`` that are reported of every table: to the baseline, to class-balanced focal loss in both
    normalisations, to deferred weights and to the best other loss, as far as the table has them.

    The best other loss has the highest mean of the table's first metric, over the seeds that all losses have, among the losses that
    are not AFL. It is chosen by the same records, which favours it.

    Returns:
        Pairs (loss, other loss), and the best other loss; None where no seed has all losses.

    Raises:
        ValueError: the table does not have the loss.
    """
    table.spec.require_losses((loss,))
    others = [name for name in table.spec.losses if "afl" not in name and name != loss]
    standard = (table.spec.baseline, "cbfl", "cbfl_instances")
    named = [name for name in others if name in standard or "deferred" in name]
    own = _by_loss(table).xs(table.spec.metrics[0], level="metric")
    row = AVERAGE if len(table.spec.detectors) > 1 else table.spec.detectors[0]
    means = own.xs(row, level="detector")[others].dropna(axis=1, how="all").dropna().mean()
    best = None if means.dropna().empty else str(means.idxmax())
    return [(loss, name) for name in dict.fromkeys([*named, *([best] if best else [])])], best


def adjusted(
    found: Mapping[tuple[str, str, str], Difference],
) -> dict[tuple[str, str, str], tuple[float, float]]:
    """P values by unit and by single difference, adjusted over all contrasts and metrics of the family (Holm)."""
    by_unit = holm([own.p_units for own in found.values()])
    by_difference = holm([own.p_differences for own in found.values()])
    return dict(zip(found, zip(by_unit, by_difference, strict=True), strict=True))


def _by_loss(table: Table) -> pd.DataFrame:
    """Rows (dataset, detector, metric, seed) in the order of the blocks, columns the losses of the table."""
    wide = table.frame.pivot(index=["dataset", "detector", "metric", "unit"], columns="loss", values="value")
    wide = wide.reindex(columns=list(table.spec.losses))
    order = [
        (block.dataset, row, block.metric, seed)
        for block in table.blocks
        for row in block.rows
        for seed in table.spec.units(block.dataset)
    ]
    return wide.reindex(pd.MultiIndex.from_tuples(order, names=wide.index.names))


# ---- classes ----------------------------------------------------------------------------------------------------------------


def classes(own: pd.DataFrame, detectors: Sequence[str], losses: Sequence[str]) -> pd.DataFrame:
    """AP of every class, averaged over detectors, for the seeds at which each of ``losses`` has finished on every detector.

    Args:
        own: the long table of one data set.

    Returns:
        Rows (name, group), columns (loss, seed); NaN where a detector has no AP of the class; ``group`` is empty where it
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
    """The ``shown`` classes that some loss moves farthest from the baseline, and below them the mean over all others."""
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


# ---- gradients over the training --------------------------------------------------------------------------------------------


def push_ratios(found: pd.DataFrame, losses: Sequence[str], baseline: str) -> pd.DataFrame:
    """How hard each loss pushes the positives of a frequency group, as a multiple of the baseline on the same seeds:

        ratio = sum over seeds of S_loss / sum over seeds of S_baseline,    S: sum of |dL/dz| over the group's positives

    S is the mean over the logged steps of a part of the training, summed over a detector's maps, before the normaliser.

    Returns:
        Rows (detector, loss, part), columns r, c, f and ``step``, the last step of the part; NaN where the baseline's positives
        have no gradient.
    """
    own = found[found.metric == "positive"]
    sums = own.pivot_table(
        index=["detector", "part", "group"],
        columns=["loss", "unit"],
        values="value",
        aggfunc="sum",
        sort=False,
    )
    steps = own.groupby(["detector", "part"]).step.first()
    tables = []
    for detector in own.detector.unique():
        mass = sums.loc[[detector]].dropna(axis=1, how="all")
        for loss in losses:
            seeds = [seed for name, seed in mass.columns if name == loss and (baseline, seed) in mass.columns]
            if seeds:
                pushed, by = (mass[[(name, seed) for seed in seeds]].sum(axis=1) for name in (loss, baseline))
                ratio = (pushed / by.where(by > 0)).unstack("group").reindex(columns=list(GROUPS))
                tables.append(ratio.assign(step=steps[ratio.index], loss=loss))
    if not tables:
        return pd.DataFrame()
    return pd.concat(tables).reset_index().set_index(["detector", "loss", "part"])


def gate_opening(found: pd.DataFrame, loss: str) -> pd.DataFrame:
    """Kappa of AFL's gate around each quarter of the training, mean over seeds and maps; 1 is shut, 0 is open.

    Records keep means over tenths of the training; a quarter takes the tenth whose last step is nearest.

    Returns:
        Rows: detectors with a kappa on record; columns: ``QUARTERS``.
    """
    own = found[(found.metric == "kappa") & (found.loss == loss)]
    rows = []
    for (detector, _), run in own.groupby(["detector", "key"], sort=False):
        last = run.step.max()
        rows.append(
            {"detector": detector}
            | {
                name: run.value.iloc[(run.step - part * last).abs().argmin()]
                for name, part in QUARTERS.items()
            }
        )
    if not rows:
        return pd.DataFrame(columns=list(QUARTERS))
    return pd.DataFrame(rows).groupby("detector", sort=False).mean()


# ---- the search for AFL's defaults, and the fit -----------------------------------------------------------------------------


def choice(
    found: pd.DataFrame, baseline: str, start: str, factors: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """AFL's free choices by the rule of ``results/protocol.md``.

    The score of an arm is the mean over (detector, seed) of half the sum of its differences to the baseline, AP and AP_r. In each
    factor, levels are compared with the starting arm, paired; the best one replaces it if it is ahead by more than one standard
    error.

    Returns:
        A row for each level of each factor, the start first: ``factor``, ``arm``, ``score``, ``ahead`` (of the start), ``error``
        (its standard error, infinite for one pair) and ``chosen``.

    Raises:
        ValueError: an arm has no run that can be paired with one of the start.
    """
    wide = found[found.metric.isin(CHOICE_METRICS)].pivot_table(
        index=["detector", "unit"], columns=["loss", "metric"], values="value", sort=False
    )
    scores = {
        arm: (wide[arm] - wide[baseline]).mean(axis=1, skipna=False).dropna()
        for arm in wide.columns.unique("loss")
    }
    levels = []
    for factor, arms in factors.items():
        own = [_level(scores, start, factor, arm) for arm in (start, *arms)]
        best = max(own[1:], key=lambda level: level["score"])
        chosen = best["arm"] if best["ahead"] > best["error"] else start
        levels += [level | {"chosen": level["arm"] == chosen} for level in own]
    return pd.DataFrame(levels)


def _level(scores: Mapping[str, pd.Series], start: str, factor: str, arm: str) -> dict:
    both = pd.DataFrame({"one": scores.get(arm), "other": scores.get(start)}).dropna()
    if both.empty:
        raise ValueError(f"{arm} has no run that can be compared with one of {start}")
    one, other = both.one, both.other
    ahead = one - other
    error = ahead.std() / math.sqrt(len(ahead)) if len(ahead) > 1 else math.inf
    return {"factor": factor, "arm": arm, "score": one.mean(), "ahead": ahead.mean(), "error": error}


def fit(
    found: pd.DataFrame, on_training_images: Mapping[str, Mapping], losses: Sequence[str], metric: str
) -> pd.DataFrame:
    """How well the training images are fitted, beside the validation images.

    A class that is poor on both was not learnt, for which a loss can be the reason. A class that is good on training images
    alone was learnt and does not generalise, which no weight on its gradient changes.

    Args:
        on_training_images: metrics by run key.

    Returns:
        Rows: detectors, then their average; columns (``training images`` or ``validation``, loss); means over the seeds for
        which every loss was measured, x 100.
    """
    own = found[(found.metric == metric) & found.loss.isin(losses)]
    seen = [on_training_images.get(key, {}).get(metric) for key in own.key]
    own = own.assign(seen=np.array(seen, float), new=own.value).dropna(subset=["seen"])
    count = own.groupby(["detector", "unit"]).loss.transform("nunique")
    own = own[count == len(losses)]
    both = [
        own.rename(columns={"value": "_", name: "value"}).assign(metric=where)
        for name, where in (("seen", "training images"), ("new", "validation"))
    ]
    means = 100 * pd.concat(both).pivot_table(
        index="detector", columns=["metric", "loss"], values="value", sort=False
    )
    means = means.reindex(columns=pd.MultiIndex.from_product([("training images", "validation"), losses]))
    if len(means) > 1:
        means.loc[AVERAGE] = means.mean()
    return means
