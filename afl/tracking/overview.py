"""The figures that show the paper's argument, under names that every tracker lists first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PREFIX = "0_overview"
GROUPS = ("r", "f")
OBJECTNESS = "objectness"  # a map without classes, whose gate opens before anything is learnt


def overview(figures: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a step about rare and frequent classes.

    Args:
        figures: by their names in ``metrics.jsonl``.

    Returns:
        ``0_overview/AP``, ``AP_r`` and ``AP_f`` of an evaluation; ``kappa``, the mean of AFL's kappa over the maps of
        classes; ``push_r`` and ``push_f``, the sum of |dL/dz| over the positives of the group's classes divided by the sum over
        their negatives, over all maps. Names without figures are missing.
    """
    found: dict[str, float] = {}
    for metric in ("AP", "AP_r", "AP_f"):
        value = figures.get(f"val/{metric}")
        if value is not None:
            found[f"{PREFIX}/{metric}"] = value
    kappas = [
        value
        for name, value in figures.items()
        if name.startswith("gradient/") and name.endswith("/kappa") and f"/{OBJECTNESS}/" not in name
    ]
    if kappas:
        found[f"{PREFIX}/kappa"] = sum(kappas) / len(kappas)
    for group in GROUPS:
        positive, negative = (
            sum(value for name, value in figures.items() if name.endswith(f"/{sign}/{group}/sum"))
            for sign in ("positive", "negative")
        )
        if negative > 0:
            found[f"{PREFIX}/push_{group}"] = positive / negative
    return found
