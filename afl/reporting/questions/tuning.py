"""The best setting of one loss, from runs that change one setting at a time."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from afl.reporting.questions.search import CHOICE_METRICS
from afl.tracking import Record
from afl.tracking.record import flat

DEFAULTS = "defaults"
_OF_A_RUN = ("seed", "cell.", "paths.", "tracker.")  # differ between runs of one setting


def tuning(records: Sequence[Record]) -> pd.DataFrame:
    """The mean of each setting over its seeds.

    The default of a setting is its most frequent value among the runs of a detector. A detector without runs of a setting, such as alpha
    where its loss has none, counts with its defaults.

    Returns:
        A row for each setting (``"loss.gamma=1.0"``, ``DEFAULTS``), columns (detector, metric) for the metrics of the choice, and
        ``("mean", "score")``, the mean of all of them; the best first.

    Raises:
        ValueError: two values of a setting are equally frequent, or a detector has no run with the defaults.
    """
    rows = []
    for detector in dict.fromkeys(record.detector for record in records):
        own = [record for record in records if record.detector == detector]
        # As text, because pandas makes NaN of None, and NaN differs from itself.
        texts = [{name: str(value) for name, value in flat(record.config).items()} for record in own]
        configs = pd.DataFrame(texts).fillna("absent")
        usual, *others = (row for _, row in configs.mode().iterrows())
        tied = [
            name
            for name in configs
            if others and isinstance(others[0][name], str) and not name.startswith(_OF_A_RUN)
        ]
        if tied:
            raise ValueError(
                f"the runs of {detector} have no most frequent value of {tied[0]}, so its default is unknown; add runs with the default"
            )
        changed = configs.columns[configs.ne(usual).any()]
        labels = []
        for _, config in configs[changed].iterrows():
            names = [n for n in changed if config[n] != usual[n] and not n.startswith(_OF_A_RUN)]
            labels.append(", ".join(f"{name}={config[name]}" for name in names) or DEFAULTS)
        if DEFAULTS not in labels:
            raise ValueError(
                f"no run of {detector} has the defaults, the most frequent value of every setting, so there is nothing to compare with; "
                "add runs with the defaults"
            )
        rows += [
            (label, detector, metric, record.metrics[metric])
            for label, record in zip(labels, own, strict=True)
            for metric in CHOICE_METRICS
        ]
    long = pd.DataFrame(rows, columns=["setting", "detector", "metric", "value"])
    answer = long.pivot_table(index="setting", columns=["detector", "metric"], values="value", sort=False)
    answer = answer.fillna(answer.loc[DEFAULTS])
    answer["mean", "score"] = answer.mean(axis=1)
    return answer.sort_values(("mean", "score"), ascending=False)
