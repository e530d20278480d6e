"""The description of a table: its cells, metrics and title."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from afl.reporting.records import CellName, Unit, unit_name


@dataclass(frozen=True)
class TableSpec:
    """Rows, columns, blocks and title of a table.

    Attributes:
        name: of its files and its LaTeX label.
        detectors, losses: rows and columns, in this order.
        datasets: one group of blocks each.
        seeds: the runs that a cell is folded over.
        metrics: one block each, by their names in the record.
        baseline: loss to which differences are taken; None: the table has no differences.
        title: first sentence of the caption.
        label: short name in a list of tables; empty: the title.
        variants: for a data set with several draws or splits, its settings and their values, such as
            ``{"ccp": {"split": [0, 1]}}``; a cell is then folded over all variants with all seeds.
    """

    name: str
    detectors: Sequence[str]
    losses: Sequence[str]
    datasets: Sequence[str]
    seeds: Sequence[int]
    metrics: Sequence[str] = ("AP", "AP_r", "AP_c", "AP_f")
    baseline: str | None = "fl"
    title: str = ""
    label: str = ""
    variants: Mapping[str, Mapping[str, Sequence[object]]] = field(default_factory=dict)

    def units(self, dataset: str) -> list[Unit]:
        """The repetitions of a cell of this data set: seeds, or (variant, seed) pairs, seed by seed."""
        settings = self.variants.get(dataset, {})
        variants = [
            dict(zip(settings, values, strict=True)) for values in itertools.product(*settings.values())
        ]
        return [unit_name(variant, seed) for seed in self.seeds for variant in variants]

    def cells(self) -> list[CellName]:
        """All cells: data set by data set, detector by detector, loss by loss."""
        return [
            (dataset, detector, loss, unit)
            for dataset in self.datasets
            for detector in self.detectors
            for loss in self.losses
            for unit in self.units(dataset)
        ]

    def __post_init__(self) -> None:
        for what in ("detectors", "losses", "datasets", "seeds", "metrics"):
            values = getattr(self, what)
            if not values:
                raise ValueError(f"table {self.name!r} has no {what}")
            if len(set(values)) < len(values):
                raise ValueError(f"table {self.name!r} names one of its {what} twice")
        if self.baseline is not None and self.baseline not in self.losses:
            raise ValueError(f"baseline {self.baseline!r} of table {self.name!r} is not among its losses")

    def require_losses(self, names: Iterable[str]) -> None:
        """Raise ValueError if the table does not have one of them."""
        for name in names:
            if name not in self.losses:
                raise ValueError(f"table {self.name} has no loss {name}; it has {', '.join(self.losses)}")
