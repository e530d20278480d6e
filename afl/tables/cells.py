"""The runs of a table: their configs, and their run directories."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from afl.config import ConfigError, did_you_mean, quoted, unknown_choice
from afl.evaluation.evaluator import FIXED_METRICS, METRICS
from afl.tracking import FINISHED, DamagedRecord, Record, read_record
from afl.tracking.run_key import VARIANT
from afl.training.build import check_preset
from afl.training.compose import compose_cell
from afl.training.data import RunData, read_data
from afl.training.run_identity import cell_key

Name = tuple[str, str, str]
"""(loss, data set, detector)"""

# VOC's metric has the overlap in its name.
_METRICS = (*METRICS, *FIXED_METRICS, "mAP50")


@dataclass(frozen=True)
class Cell:
    """One run of a table.

    Attributes:
        name: name of the run in messages.
        folder: run directory.
        unit: name of the table entry that the run belongs to; the runs of several folds share it.
        fold: training half of a two-fold data set; None for other data sets.
    """

    name: str
    folder: Path
    unit: str = ""
    fold: str | None = None

    def record(self) -> Record | None:
        """The run's record; None if there is none, or if the run will replace it because it is damaged or of another run."""
        path = self.folder / "record.json"
        try:
            record = read_record(path) if path.exists() else None
            return record if record is not None and record.key == self.folder.name else None
        except (DamagedRecord, FileNotFoundError):  # the run may be renaming it at this moment
            return None

    def written(self) -> int | None:
        """The time at which the record was written, in nanoseconds; None if there is none."""
        try:
            return (self.folder / "record.json").stat().st_mtime_ns
        except FileNotFoundError:
            return None

    @property
    def is_finished(self) -> bool:
        record = self.record()
        return record is not None and record.status == FINISHED


def preset(config: DictConfig, detector: str) -> list[str]:
    """The override that selects a row's experiment, if it has one, such as ``experiment=coco/fcos``."""
    folder = config.table.experiments
    return [f"experiment={folder}/{detector}"] if folder else []


def compose_rows(config: DictConfig) -> dict[tuple[str, str], DictConfig]:
    """The config of the table's first loss at seed 0, by (data set, detector). Reads no data.

    Raises:
        ConfigError: a detector, loss, data set or metric of the table does not exist.
    """
    table = config.table
    named = {"detector": table.detectors, "loss": table.losses, "dataset": table.datasets}
    if problem := unknown_choice([f"{group}={','.join(names)}" for group, names in named.items()]):
        raise ConfigError(f"table={table.name}: {problem}")
    for metric in table.metrics:
        if metric not in _METRICS and not re.fullmatch(r"mAP\d+", metric):
            meant = did_you_mean(metric, _METRICS)
            raise ConfigError(
                f"table={table.name}: There is no metric {metric!r}.{meant} There are: {', '.join(_METRICS)}"
            )
    return {
        (dataset, detector): _compose(config, table.losses[0], dataset, detector)
        for dataset, detector in itertools.product(table.datasets, table.detectors)
    }


def compose_cells(
    config: DictConfig, rows: dict[tuple[str, str], DictConfig] | None = None
) -> dict[Name, DictConfig]:
    """The configs of all combinations in ``config.table`` at seed 0, in the order of training: all detectors of one loss, then the
    next loss. Reads no data.

    Composing takes a seventh of a second. The choice of a loss changes only the group ``loss``
    (``tests/scripts/test_paper_tables.py``), so each row and each loss is composed once, and the configs are combined from them.

    Args:
        rows: result of ``compose_rows``, if the caller has it.
    """
    table = config.table
    rows = compose_rows(config) if rows is None else rows
    first = next(iter(rows))
    losses = {
        loss: rows[first].loss if loss == table.losses[0] else _compose(config, loss, *first).loss
        for loss in table.losses
    }
    composed = {}
    for loss, (dataset, detector) in itertools.product(table.losses, rows):
        cell = copy.deepcopy(rows[dataset, detector])
        with open_dict(cell):
            cell.loss = losses[loss]
            cell.cell.loss = loss
        composed[loss, dataset, detector] = cell
    return composed


def _compose(config: DictConfig, loss: str, dataset: str, detector: str) -> DictConfig:
    paths = [f"paths.{name}={quoted(config.paths[name])}" for name in ("data", "cache", "output")]
    overrides = [
        *preset(config, detector), f"dataset={dataset}", *paths, *config.table.overrides, *config.overrides,
    ]  # fmt: skip
    composed = compose_cell(detector=detector, loss=loss, overrides=overrides)
    if composed.dataset.name != dataset:
        raise ConfigError(
            f"table={config.table.name} lists the data set {dataset}, but its runs have dataset.name={composed.dataset.name}, so the "
            f"table would not find them; list {composed.dataset.name}, and describe your data in conf/dataset/{composed.dataset.name}.yaml"
        )
    check_preset(composed)
    return composed


class DataSets:
    """The data of runs; data that several runs share is read once."""

    def __init__(self) -> None:
        self._read: dict[str, RunData] = {}

    def of(self, cell: DictConfig) -> RunData:
        """The training and validation data of a run, which may depend on its seed (``dataset.seed=${seed}``).

        Raises:
            DataError: the data is missing; the message names the command that downloads it.
        """
        plain = OmegaConf.to_container(cell, resolve=True)
        source = repr((plain["dataset"]["train"], plain["dataset"]["val"], plain["subset"]))
        if source not in self._read:
            self._read[source] = read_data(cell)
        return self._read[source]


def settings_of(table: DictConfig, dataset: str) -> list[tuple[dict[str, object], str | None]]:
    """The (variant, fold) pairs of a data set, from ``variants`` and ``folds`` in the table's file."""
    variants = (table.get("variants") or {}).get(dataset) or {}
    folds = (table.get("folds") or {}).get(dataset) or [None]
    combinations = [
        dict(zip(variants, values, strict=True)) for values in itertools.product(*variants.values())
    ]
    return list(itertools.product(combinations, folds))


def _cell(
    config: DictConfig, plain: dict[str, Any], data: RunData, variant: dict[str, object], fold: str | None
) -> Cell:
    """The run of a resolved config, below the table's output folder."""
    key = cell_key(plain, data)
    words = [f"{name}{value}" for name, value in variant.items() if name not in VARIANT]
    unit = "-".join([key.slug.removesuffix(f"-fold_{fold}"), *words])
    name = f"{unit}-fold_{fold}" if fold else unit
    return Cell(name, Path(config.paths.output) / key.name, unit, fold)


def by_row(composed: Mapping[Name, DictConfig]) -> list[dict[Name, DictConfig]]:
    """The configs of each row (data set, detector), in the order of the rows' first configs."""
    rows = dict.fromkeys(name[1:] for name in composed)
    return [{name: cell for name, cell in composed.items() if name[1:] == row} for row in rows]


def runs_of(
    config: DictConfig, row: Mapping[Name, DictConfig], seed: int, datasets: DataSets
) -> dict[Name, list[Cell]]:
    """All runs of a row with one seed: for each config, one for each variant and fold of the row's data set.

    Resolving a config takes a hundredth of a second, so everything but the loss is resolved once for all losses.

    Args:
        row: the configs of one data set and detector. They differ only in the loss, and no other setting refers to the loss.

    Raises:
        DataError: the data of a variant is missing.
    """
    found: dict[Name, list[Cell]] = {name: [] for name in row}
    own = copy.deepcopy(next(iter(row.values())))
    own.seed = seed
    for variant, fold in settings_of(config.table, own.cell.dataset):
        for setting, value in {**variant, **({"fold": fold} if fold else {})}.items():
            own.dataset[setting] = value
        data = datasets.of(own)
        plain: Any = OmegaConf.to_container(own, resolve=True)
        for name, cell in row.items():
            own.loss = cell.loss
            loss = OmegaConf.to_container(own.loss, resolve=True)
            whole = {**plain, "loss": loss, "cell": {**plain["cell"], "loss": name[0]}}
            found[name].append(_cell(config, whole, data, variant, fold))
    return found


def cells_of(config: DictConfig, seeds: Sequence[int]) -> list[Cell]:
    """All runs of the table, seed by seed.

    Raises:
        DataError: a data set is missing.
    """
    composed, datasets = compose_cells(config), DataSets()
    found: list[Cell] = []
    for seed in seeds:
        runs: dict[Name, list[Cell]] = {}
        for row in by_row(composed):
            runs |= runs_of(config, row, seed, datasets)
        found += [run for name in composed for run in runs[name]]
    return found
