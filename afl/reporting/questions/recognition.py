"""Localisation and classification apart, from the detections of finished runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from afl.reporting.frame import AVERAGE

Counts = Mapping[str, Sequence[int]]
"""Numbers of objects, of localised ones and of recognised ones, by frequency group."""


def recognition(
    found: pd.DataFrame, counts: Mapping[str, Counts], losses: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Share of localised objects, and share of these that are recognised.

    Args:
        found: the long table; the key of a record of several folds joins the keys of its runs by ``+``.
        counts: by run key.

    Returns:
        Two tables. Rows: detectors, then their average, or, in a table of several data sets, data set and detector; columns (group,
        loss); objects of all units for which every loss has counts are taken together, x 100.
    """
    runs = found[found.loss.isin(losses)].drop_duplicates("key")
    runs = runs[[all(part in counts for part in key.split("+")) for key in runs.key]]
    runs = runs[runs.groupby(["dataset", "detector", "unit"]).loss.transform("nunique") == len(losses)]
    several = runs.dataset.nunique() > 1
    rows = [
        (f"{run.dataset} {run.detector}" if several else run.detector, run.loss, group, *numbers)
        for run in runs.itertuples()
        for part in run.key.split("+")
        for group, numbers in counts[part].items()
    ]
    long = pd.DataFrame(rows, columns=["detector", "loss", "group", "objects", "localised", "recognised"])
    sums = long.groupby(["detector", "group", "loss"], sort=False).sum()
    shares = sums.localised / sums.objects, sums.recognised / sums.localised
    groups = [group for group in ("all", "r", "c", "f") if group in set(long.group)]
    columns = pd.MultiIndex.from_product([groups, losses])
    tables = [100 * share.unstack(["group", "loss"]).reindex(columns=columns) for share in shares]
    for table in tables:
        if len(table) > 1 and not several:
            table.loc[AVERAGE] = table.mean()
    return tables[0], tables[1]
