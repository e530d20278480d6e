"""Plans a table before it is trained: number of runs, finished runs, hours and disk space.

The hours of each row come from the best available source (:mod:`afl.tables.speed`), which the plan names.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Group
from rich.text import Text

from afl.reporting import load_records
from afl.reporting.frames import Frames
from afl.tables.cells import Cell, DataSets, Name, by_row, compose_cells, compose_rows, runs_of, settings_of
from afl.tables.pinned import pinned, require_trainable
from afl.tables.speed import Speeds, gpu_steps, sources
from afl.tracking import FINISHED, differing
from afl.training import ConfigError
from afl.training.classifier_stage import FIRST_STAGE, only_evaluates
from afl.training.cost import network_cost
from afl.training.duration import Duration
from afl.training.features import features_file, pretraining_config
from afl.training.initial_weights import SHAPES
from datasets import DataError
from datasets.releases import PUBLISHED, SIZES, Size
from datasets.shapes import pretraining_parts

CHECKPOINTS = 2  # kept by a run: last and previous
# Upper limit of one detection in detections.json: a mean of 94 to 109 in runs on Shapes and FOD-A, whose image ids have few digits.
DETECTION_BYTES = 110
FEATURES = "pre-training"  # name of its row
WITHOUT_DATA = "Without the data, finished runs are not counted, and the images and classes are those of the published data set"
MEASURE = ("auto", "true", "false")


@dataclass(frozen=True)
class Row:
    """All runs of one detector on one data set.

    Attributes:
        runs: number of runs over losses and seeds.
        done: number of finished runs.
        hours_each: hours of one run, training and evaluation, averaged over losses.
        hours_left: hours of all unfinished runs.
        bytes_each: upper limit of the disk space of one run.
    """

    name: str
    runs: int
    done: int
    hours_each: float
    hours_left: float
    bytes_each: float
    device: str
    source: str


@dataclass(frozen=True)
class Plan:
    """The plan of a table.

    Attributes:
        title: of the table.
        rows: one for each data set and detector, and one for pre-training if there is any.
        notes: most important first.
    """

    title: str
    rows: Sequence[Row]
    notes: Sequence[str]

    def hours_by_device(self) -> dict[str, float]:
        """Hours of the unfinished runs, by the device that the speed was measured on."""
        total: dict[str, float] = {}
        for row in self.rows:
            total[row.device] = total.get(row.device, 0.0) + row.hours_left
        return total

    def to_rich(self) -> Group:
        """The plan as an object for ``rich.print``."""
        columns = ("runs", "done", "hours each", "hours left", "GB each", "on", "known from")
        rows = {
            row.name: (
                str(row.runs), str(row.done), _hours(row.hours_each), _hours(row.hours_left),
                f"{row.bytes_each / 1e9:.2g}", row.device, row.source,
            )
            for row in self.rows
        }  # fmt: skip
        table = Frames(self.title, columns, rows, left=("on", "known from"))
        runs, done = sum(row.runs for row in self.rows), sum(row.done for row in self.rows)
        hours = ", ".join(
            f"{_hours(value)} h on one {device}" for device, value in self.hours_by_device().items()
        )
        disk = sum((row.runs - row.done) * row.bytes_each for row in self.rows) / 1e9
        lines = [
            f"{runs} runs, {done} done, {runs - done} to train: {hours}; {disk:.1f} GB of disk",
            *self.notes,
        ]
        return Group(table, *(Text(line) for line in lines))


def plan(config: DictConfig, seeds: Sequence[int]) -> Plan:
    """Plan every run of ``config.table``, without training or downloading.

    Raises:
        ConfigError: ``measure`` is neither auto, true nor false, or the table was trained with configs that no longer exist.
    """
    require_trainable(config.table)
    if str(config.measure).lower() not in MEASURE:
        raise ConfigError(f"measure is {config.measure!r}; it must be one of {', '.join(MEASURE)}")
    first = compose_rows(config)
    notes = [pinned(config.table)] if pinned(config.table) else []
    datasets: DataSets | None = DataSets()
    try:
        for cell in first.values():
            datasets.of(cell)
        composed = compose_cells(config, first)
    except DataError as error:
        datasets = None
        # Without the data a run's key is unknown. The cost of a run hardly depends on its loss, so the first loss represents all.
        composed = {(loss, *row): cell for loss in config.table.losses for row, cell in first.items()}
        notes += [f"Data: {error}", WITHOUT_DATA, *_disk_of_data(composed)]
    kept = Path(config.results) / config.table.name / "records"
    known = [path for path in (Path(config.paths.output), Path(config.results)) if path.exists()]
    known += sorted(Path(config.results).glob("*/records/*.json"))
    speeds = Speeds(
        load_records(known),
        str(config.measure).lower(),
        gpu_steps(Path(config.results) / "benchmark" / "gpu.json"),
    )
    rows = [_row(config, row, datasets, seeds, speeds) for row in by_row(composed)]
    own = [
        cell
        for cell in first.values()
        if cell.initial_weights == SHAPES and not features_file(cell).is_file()
    ]
    if own:
        rows.append(_pretraining(config, own, speeds))
    notes += speeds.notes([row.source for row in rows])
    notes.append(
        "Without a finished run, evaluating one view of an image is assumed to take a third of its training time"
    )
    notes.append(
        f"Disk space is an upper limit: {CHECKPOINTS} checkpoints, detections. Free in {config.paths.output}: "
        f"{_free(Path(config.paths.output)) / 1e9:.0f} GB"
    )
    if kept.exists():
        notes.append(
            f"{len(list(kept.glob('*.json')))} records are committed in {kept}: `make table-{config.table.name}` builds the table from them"
        )
    return Plan(title=f"{config.table.title}: seeds {', '.join(map(str, seeds))}", rows=rows, notes=notes)


def _row(
    config: DictConfig,
    cells: Mapping[Name, DictConfig],
    datasets: DataSets | None,
    seeds: Sequence[int],
    speeds: Speeds,
) -> Row:
    (_, dataset, detector), cell = next(iter(cells.items()))
    counts = _counts(cell, datasets)
    repeats = len(settings_of(config.table, dataset))
    cost = network_cost(cell, counts.classes)
    known = speeds.of(cell, [loss for loss, _, _ in cells], counts.classes, cost.forward_macs)
    # Without the data the run keys are unknown.
    found = [] if datasets is None else [runs_of(config, cells, seed, datasets) for seed in seeds]
    hours_each, hours_left, done = [], 0.0, 0
    for (name, own), speed in zip(cells.items(), known, strict=True):
        views = len(own.trainer.test_time.scales) * (2 if own.trainer.test_time.flip else 1)
        evaluation = speed.eval_seconds or views * counts.val_images / (3 * speed.images_per_second)
        shared = FIRST_STAGE in config.table.losses and only_evaluates(own)
        images = 0 if shared else _images(own, counts.train_images)
        hours = (images / speed.images_per_second + evaluation) / 3600
        finished = sum(run.is_finished for runs in found for run in runs[name])
        hours_each.append(hours)
        hours_left += hours * (len(seeds) * repeats - finished)
        done += finished
    detections = counts.val_images * cell.dataset.max_detections * DETECTION_BYTES
    return Row(
        name=detector if len(config.table.datasets) == 1 else f"{dataset} {detector}",
        runs=len(cells) * len(seeds) * repeats,
        done=done,
        hours_each=statistics.fmean(hours_each),
        hours_left=hours_left,
        bytes_each=CHECKPOINTS * cost.checkpoint_bytes + detections,
        device=known[0].device,
        source=sources(known),
    )


def _images(cell: DictConfig, images_per_epoch: int) -> int:
    """Number of images that a run trains on, counting repetitions."""
    batch_size = cell.trainer.batch_size
    duration = Duration.parse(cell.trainer.max_duration)
    return batch_size * duration.in_steps(images_per_epoch=images_per_epoch, batch_size=batch_size)


def _counts(cell: DictConfig, datasets: DataSets | None) -> Size:
    """Number of images and classes: of the data if it is available, otherwise as published."""
    if datasets is None and cell.dataset.name in SIZES:
        return SIZES[cell.dataset.name]
    # The user's own data is needed; if it is missing, the message names its folder.
    data = (datasets or DataSets()).of(cell)
    return Size(len(data.train), len(data.val), len(data.classes))


def _pretraining(config: DictConfig, cells: Sequence[DictConfig], speeds: Speeds) -> Row:
    """The runs that pre-train the features that ``cells`` start from; cells with the same detector and backbone share one."""
    runs: list[tuple[DictConfig, dict[str, Any]]] = []
    for cell in cells:
        own = pretraining_config(cell)
        plain: Any = OmegaConf.to_container(own, resolve=True)
        if all(differing(plain, other) for _, other in runs):
            runs.append((own, plain))
    hours, left, done, size = [], 0.0, 0, 0.0
    for own, plain in runs:
        outlines, fills = pretraining_parts(own.dataset.folder.more_classes)
        classes = len(outlines) * len(fills)
        cost = network_cost(own, classes)
        (speed,) = speeds.of(own, [own.cell.loss], classes, cost.forward_macs)
        hours.append(_images(own, own.dataset.folder.num_train) / speed.images_per_second / 3600)
        finished = _has_finished_run(Path(config.paths.output), plain)
        done += finished
        left += 0.0 if finished else hours[-1]
        size = max(size, CHECKPOINTS * cost.checkpoint_bytes)
    return Row(FEATURES, len(runs), done, statistics.fmean(hours), left, size, speed.device, speed.source)


def _has_finished_run(output: Path, plain: dict[str, Any]) -> bool:
    """Whether a folder below ``output`` contains a finished run of a resolved config. Only the configs are compared: the run's key
    also depends on the content of its data, which is not generated before the run."""
    cell = plain["cell"]
    folders = output.glob(f"{cell['dataset']}-{cell['detector']}-{cell['loss']}-s{plain['seed']}-*")
    records = [Cell(folder.name, folder).record() for folder in folders]
    return any(
        record is not None and record.status == FINISHED and not differing(record.config, plain)
        for record in records
    )


def _disk_of_data(composed: dict[Name, DictConfig]) -> list[str]:
    """One line for each missing data set: its disk space while it is unpacked, including the archives."""
    lines = []
    for name, cell in {name[1]: cell for name, cell in composed.items()}.items():
        need = 0.0
        for entry, parts in PUBLISHED.get(name, {}).items():
            folder = Path(cell.dataset[entry])
            for part in parts:
                if not all((folder / path).exists() for path in part.outputs.values()):
                    need += sum(archive.size * (1 + archive.growth) for archive in part.archives)
        if need:
            lines.append(
                f"Data of {name}: {need / 1e9:.0f} GB during unpacking, about half of that afterwards"
            )
    return lines


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.absolute().parent
    return shutil.disk_usage(folder).free


def _hours(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"
