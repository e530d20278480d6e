"""The choice of a form of AFL from several data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from afl.reporting.questions.search import CHOICE_METRICS


def forms(
    found: Mapping[str, pd.DataFrame], baseline: str, candidates: Sequence[str], least_head: float
) -> pd.DataFrame:
    """The forms of AFL by the rule of ``results/protocol.md``.

    The score of an arm on a data set is the mean over (detector, seed) of half the sum of its differences to the baseline, AP and
    AP_r, paired. Of the candidates whose mean difference of AP_f is ``least_head`` or more on every set, the one with the highest
    mean score is chosen; if none is, the one whose smallest difference of AP_f is largest.

    Args:
        found: long tables of the records of each development set, by its name.

    Returns:
        A row for each arm, columns ``("score", SET)``, ``("AP_f", SET)``, ``("pairs", SET)``, ``("mean", "score")`` and
        ``("mean", "chosen")``. An arm without a pair on one of the sets has no mean.
    """
    columns = {}
    for name, rows in found.items():
        wide = rows[rows.metric.isin([*CHOICE_METRICS, "AP_f"])].pivot_table(
            index=["detector", "unit"], columns=["metric", "loss"], values="value", sort=False
        )
        gain = pd.concat(
            {metric: wide[metric].sub(wide[metric][baseline], axis=0) for metric in wide.columns.unique(0)}
        )
        mean = gain.groupby(level=0).mean()
        columns["score", name] = mean.loc[list(CHOICE_METRICS)].mean()
        columns["AP_f", name] = mean.loc["AP_f"]
        columns["pairs", name] = gain.loc["AP_f"].notna().sum()
    answer = pd.DataFrame(columns).drop(baseline)
    answer["mean", "score"] = answer["score"].mean(axis=1, skipna=False)
    own = answer.loc[[name for name in candidates if name in answer.index]]
    able = own[(own["AP_f"] >= least_head).all(axis=1)]
    chosen = able["mean", "score"].idxmax() if len(able) else own["AP_f"].min(axis=1, skipna=False).idxmax()
    answer["mean", "chosen"] = answer.index == chosen
    return answer.sort_values(("mean", "score"), ascending=False)
