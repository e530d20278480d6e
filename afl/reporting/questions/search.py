"""The search for AFL's defaults, and the fit of the training images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from afl.reporting.frame import AVERAGE

CHOICE_METRICS = ("AP", "AP_r")


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
    """AP on the training images and on the validation images.

    A class with a low AP on both was not learnt, possibly because of the loss. A class with a high AP on training images alone
    was learnt but does not generalise, which no weight on its gradient changes.

    Args:
        on_training_images: metrics by run key.

    Returns:
        Rows: detectors, then their average; columns (``training images`` or ``validation``, loss); means over the seeds for
        which every loss was measured, x 100.
    """
    own = found[(found.metric == metric) & found.loss.isin(losses)]
    seen = [on_training_images.get(key, {}).get(metric) for key in own.key]
    own = own.assign(seen=np.array(seen, float), new=own.value).dropna(subset=["seen"])
    count = own.groupby(["dataset", "detector", "unit"]).loss.transform("nunique")
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
