"""Ranks the losses of a table by gain, with their costs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from afl.reporting.inference import Difference
from afl.reporting.questions.contrasts import adjusted, contrasts
from afl.reporting.table import Table


@dataclass(frozen=True)
class Ranked:
    """One loss against the baseline.

    Attributes:
        loss: its name.
        gains: difference to the baseline by metric, in [0, 1], over detectors and units; empty for the baseline.
        p: p value by single difference of each metric, adjusted over all losses and metrics of the table (Holm).
        time: processor time of a training step as a multiple of the baseline's; None if it was not measured.
        memory: most bytes of tensors alive in that step as a multiple of the baseline's; None if they were not measured.
    """

    loss: str
    gains: dict[str, Difference]
    p: dict[str, float]
    time: float | None
    memory: float | None

    @property
    def gain(self) -> float:
        """The gain in the table's first metric, 0 for the baseline."""
        return next(iter(self.gains.values())).mean if self.gains else 0.0


def ranking(table: Table, costs: Mapping[str, tuple[float, float]]) -> list[Ranked]:
    """The losses of a table, the largest gain in its first metric first; losses without a unit on every detector are left out.

    Args:
        costs: of ``step_costs``.

    Raises:
        ValueError: the table has no baseline, or no loss to compare with it.
    """
    baseline = table.spec.baseline
    if baseline is None:
        raise ValueError(f"table {table.spec.name} has no baseline to compare with")
    found = contrasts(table, [(loss, baseline) for loss in table.spec.losses if loss != baseline])
    if not found:
        raise ValueError(
            f"table {table.spec.name} has no loss with a run on every detector for a seed of {baseline}"
        )
    corrected = adjusted(found)
    gains: dict[str, dict[str, Difference]] = {baseline: {}}
    for (loss, _, metric), own in found.items():
        gains.setdefault(loss, {})[metric] = own
    ranked = [
        Ranked(
            loss,
            own,
            {metric: corrected[loss, baseline, metric][1] for metric in own},
            *costs.get(loss, (1.0, 1.0) if loss == baseline else (None, None)),
        )
        for loss, own in gains.items()
    ]
    return sorted(ranked, key=lambda one: -one.gain)


def step_costs(path: Path) -> dict[str, tuple[float, float]]:
    """Time and memory of a training step with each loss as multiples of focal loss's, averaged over the detectors that were measured.

    Args:
        path: ``remedies.json`` of the benchmark; empty if it does not exist. The times in the records of a table depend on what
            else ran on the machine, and the memory of a process on the runs before.
    """
    if not path.exists():
        return {}
    rows: dict[str, list[tuple[float, float]]] = {}
    for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
        loss, found, _ = row["what"].partition(" / fl, step of ")
        if found:
            rows.setdefault(loss, []).append((row["ratio"], row["ours_memory"] / row["theirs_memory"]))
    return {
        loss: (fmean(time for time, _ in own), fmean(memory for _, memory in own))
        for loss, own in rows.items()
    }
