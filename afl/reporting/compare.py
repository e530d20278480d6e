"""Compares two runs: their settings, and the changes of AP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from afl.tracking import Record
from afl.tracking.record import flat
from afl.tracking.run_key import EXCLUDED

# Entries that do not affect a result, or that only repeat others.
IGNORED = ("cell", "dataset.folder.root", *(name for name in EXCLUDED if name != "dataset.folder"))
SHOWN = 10


@dataclass(frozen=True)
class Comparison:
    """The differences of the second run from the first.

    Attributes:
        changed: (entry of the config, first, second) for entries that differ; None if a run does not have the entry.
        metrics: (name, first, second) of metrics that both have.
        classes: (name, group, first, second) of classes that both have, by rising difference.
        warnings: sentences that say why the figures may not be comparable.
    """

    first: Record
    second: Record
    changed: list[tuple[str, Any, Any]]
    metrics: list[tuple[str, float, float]]
    classes: list[tuple[str, str, float, float]]
    warnings: list[str]

    def most_moved(self, count: int = SHOWN) -> list[tuple[str, str, float, float]]:
        """Up to ``count`` classes that fell most and as many that rose most, by rising difference."""
        fallen = [row for row in self.classes if row[3] < row[2]][:count]
        risen = [row for row in self.classes if row[3] > row[2]][-count:]
        return fallen + risen


def comparison(first: Record, second: Record) -> Comparison:
    """Compare any two finished runs."""
    warnings = []
    if first.data_hash != second.data_hash:
        warnings.append("The two runs were trained or evaluated on different data.")
    if first.git.get("source") != second.git.get("source"):
        warnings.append("The two runs come from different states of the code.")
    if first.started_apart(second):
        warnings.append("The two runs started from different weights.")
    one, two = flat(first.config), flat(second.config)
    changed = [
        (name, one.get(name), two.get(name))
        for name in dict.fromkeys([*one, *two])
        if one.get(name) != two.get(name) and not any(name == u or name.startswith(f"{u}.") for u in IGNORED)
    ]
    metrics = [
        (name, value, second.metrics[name])
        for name, value in first.metrics.items()
        if value is not None and second.metrics.get(name) is not None
    ]
    classes = [
        (name, first.groups.get(name, "f"), value, second.per_class[name])
        for name, value in first.per_class.items()
        if value is not None and second.per_class.get(name) is not None
    ]
    classes.sort(key=lambda row: row[3] - row[2])
    return Comparison(first, second, changed, metrics, classes, warnings)
