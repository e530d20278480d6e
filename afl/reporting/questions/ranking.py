"""Ranks the losses of a table by gain, with their costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from afl.reporting.inference import Difference
from afl.reporting.questions.contrasts import adjusted, contrasts
from afl.reporting.table import Table
from afl.tracking.record import FINISHED, Record


@dataclass(frozen=True)
class Ranked:
    """One loss against the baseline.

    Attributes:
        loss: its name.
        gains: difference to the baseline by metric, in [0, 1], over detectors and units; empty for the baseline.
        p: p value by single difference of each metric, adjusted over all losses and metrics of the table (Holm).
        time: seconds of training for an image as a multiple of the baseline's; None if no record has it.
        memory: largest memory of the process as a multiple of the baseline's; None if no record has it.
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


def ranking(table: Table) -> list[Ranked]:
    """The losses of a table, the largest gain in its first metric first; losses without a unit on every detector are left out.

    Time and memory are medians over the cells that have a cell of the baseline with the same data set, detector and unit.

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
            _ratio(table, loss, _seconds),
            _ratio(table, loss, lambda record: record.peak_memory_bytes),
        )
        for loss, own in gains.items()
    ]
    return sorted(ranked, key=lambda one: -one.gain)


def _seconds(record: Record) -> float | None:
    """Seconds of training per image."""
    return 1 / record.images_per_second if record.images_per_second else None


def _ratio(table: Table, loss: str, cost: Callable[[Record], float | None]) -> float | None:
    """Median ratio of a cost of a loss's records to the cost of the corresponding records of the baseline."""
    ratios = []
    for (dataset, detector, name, unit), record in table.cells.items():
        base = table.cells[dataset, detector, str(table.spec.baseline), unit]
        if (
            name == loss
            and record is not None
            and base is not None
            and {record.status, base.status} == {FINISHED}
        ):
            own, other = cost(record), cost(base)
            if own and other:
                ratios.append(own / other)
    return median(ratios) if ratios else None
