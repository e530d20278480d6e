"""The noise of a table over seeds, and the differences between its losses with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from afl.reporting.frame import AVERAGE
from afl.reporting.inference import Difference, difference, holm
from afl.reporting.intervals import Estimate, paired_difference, t_quantile
from afl.reporting.records import variant_of
from afl.reporting.table import Table
from afl.tracking import names_afl


def noise(table: Table) -> pd.DataFrame:
    """The change of a figure when only the seed changes, pooled over the losses of a row.

        spread^2 = sum over losses and seeds of (x - mean of the loss)^2 / sum over losses of (n - 1)

    where variants of a data set, such as splits, are counted apart, as if each were a loss:

        paired^2 = the same of the differences to the baseline by seed

    A single loss has three to five seeds, which are too few to estimate its standard deviation alone.

    Returns:
        By row (data set, detector) and metric: ``spread`` and ``paired``, NaN if no loss has two seeds or, for ``paired``, if no
        other loss has two seeds with the baseline, and ``freedom``, the degrees of freedom of ``spread``.
    """
    baseline = table.spec.baseline
    found = {}
    for place, own in _by_loss(table).groupby(level=["dataset", "detector", "metric"], sort=False):
        moved = own.sub(own[baseline], axis=0).drop(columns=baseline) if baseline else own[[]]
        spread, freedom = pooled_deviation(variants_apart(own))
        paired, _ = pooled_deviation(variants_apart(moved))
        found[place] = {"spread": spread, "paired": paired, "freedom": freedom}
    return pd.DataFrame.from_dict(found, orient="index").rename_axis(["dataset", "detector", "metric"])


def variants_apart(by_unit: pd.DataFrame) -> pd.DataFrame:
    """A column for each (loss, variant), so that only seeds of one variant are in a column."""
    return by_unit.set_index(by_unit.index.get_level_values("unit").map(variant_of), append=True).unstack(-1)


def pooled_deviation(columns: pd.DataFrame) -> tuple[float, int]:
    """Standard deviation within the columns and its degrees of freedom; NaN and 0 if no column has two values."""
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


def contrasts(
    table: Table, pairs: Sequence[tuple[str, str]], other: Table | None = None
) -> dict[tuple[str, str, str], Difference]:
    """The family of contrasts of a table: for each pair of losses and each metric, over all detectors and units (data set, seed)
    for which every detector has both losses. Contrasts without such a unit are left out.

    Args:
        other: the table that has the second loss of each pair, for the same data sets, detectors and units with other settings.

    Returns:
        By loss, other loss ("fl", or "fl of OTHER") and metric.

    Raises:
        ValueError: a table does not have one of its losses.
    """
    table.spec.require_losses(loss for loss, _ in pairs)
    (other or table).spec.require_losses(against for _, against in pairs)
    wide = _by_loss(table)
    second = wide if other is None else _by_loss(other)
    found = {}
    for loss, against in pairs:
        moved = (wide[loss] - second[against]).unstack(["dataset", "unit"])
        label = against if other is None else f"{against} of {other.spec.name}"
        for metric in table.spec.metrics:
            layout = moved.xs(metric, level="metric").reindex(list(table.spec.detectors)).dropna(axis=1)
            if layout.shape[1]:
                found[loss, label, metric] = difference(layout.to_numpy())
    return found


def family(table: Table, loss: str) -> tuple[list[tuple[str, str]], str | None]:
    """The contrasts of ``loss`` that are reported for every table: to the baseline, to class-balanced focal loss in both
    normalisations, to deferred weights and to the best other loss, if the table has them.

    The best other loss has the highest mean of the table's first metric, over the seeds that all losses have, among the losses that
    are not AFL. It is chosen by the same records, which favours it.

    Returns:
        Pairs (loss, other loss), and the best other loss; None if no seed has all losses.

    Raises:
        ValueError: the table does not have the loss.
    """
    table.spec.require_losses((loss,))
    others = [name for name in table.spec.losses if not names_afl(name) and name != loss]
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


def gains(table: Table) -> dict[str, dict[str, Estimate]]:
    """The gain of each loss over the baseline, by loss and metric, in [0, 1], as in ``contrasts``, with the pooled interval.

    Raises:
        ValueError: the table has no baseline.
    """
    baseline = table.spec.baseline
    if baseline is None:
        raise ValueError(f"table {table.spec.name} has no baseline to compare with")
    found: dict[str, dict[str, Estimate]] = {}
    pairs = [(loss, baseline) for loss in table.spec.losses if loss != baseline]
    for (loss, _, metric), own in contrasts(table, pairs).items():
        half = own.pooled.half if own.pooled else None
        found.setdefault(loss, {})[metric] = Estimate(own.mean, half, own.units)
    return found


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
