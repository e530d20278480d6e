"""The material of reports from run directories: records, and some validation images with their detections."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from afl.config import missing_run, read_config
from afl.reporting import load_records
from afl.reporting.pages.material import Gallery
from afl.tracking import FINISHED, Record, read_record
from afl.training.checkpoint import LAST
from afl.training.data import RunData, build_evaluator, read_data
from afl.training.evaluation import evaluate_run
from afl.training.folds import DETECTIONS, kept_detections
from afl.training.load import load_run
from afl.training.pictures import picture_of
from afl.training.run_identity import RECORD
from datasets import DataError
from detectors.contract import Detections


def run_folders(runs: Path) -> dict[str, Path]:
    """The run directories in ``runs`` by run key; empty if the folder does not exist."""
    if not runs.is_dir():
        return {}
    return {record.key: runs / record.key for record in load_records(runs) if (runs / record.key).is_dir()}


def finished_record(folder: Path) -> Record:
    """The record of a run directory.

    Raises:
        ValueError: there is no such directory, the run failed, or it has no record yet.
    """
    if not folder.exists():
        raise ValueError(missing_run(folder))
    if not (folder / RECORD).is_file():
        raise ValueError(f"{folder} has no {RECORD}: it is not a run directory, or the run has not finished")
    record = read_record(folder / RECORD)
    if record.status != FINISHED:
        raise ValueError(f"{folder}: the run failed ({record.error}); train it again")
    return record


def data_of(record: Record) -> RunData:
    """The data set that a run was trained on.

    Raises:
        DataError: it is not on this machine, or it is damaged; or the record is of several folds, which have several training sets.
    """
    if "train" not in record.config.get("dataset", {}):
        raise DataError(f"the record {record.key} combines folds, and each fold has separate training images")
    return read_data(OmegaConf.create(dict(record.config)))


def require_images(count: int) -> None:
    """Raise ValueError for fewer than one image."""
    if count < 1:
        raise ValueError(f"images is {count}; at least 1 is needed")


def telling_images(data: RunData, count: int) -> list[int]:
    """At most ``count`` validation images with many frequency groups and rare classes, in the order of the split.

    Raises:
        ValueError: the count is below 1.
    """
    require_images(count)
    groups = np.array(data.statistics.groups)

    def interest(i: int) -> tuple[int, int, int]:
        own = set(data.val.labels[data.val.annotations(i)].tolist())
        kinds = {groups[label] for label in own}
        return -len(kinds), -sum(groups[label] == "r" for label in own), i

    return sorted(sorted(range(len(data.val)), key=interest)[:count])


def gallery_of(folder: Path, record: Record, data: RunData, images: Sequence[int]) -> Gallery:
    """Images of the validation split with their objects and the detections of the run's evaluation.

    Args:
        images: positions in ``data.val``.

    Raises:
        ValueError: the run directory has no detections, or the file is damaged.
    """
    label_of = {int(number): label for label, number in enumerate(data.val.category_ids)}
    wanted: dict[int, list] = {int(data.val.image_ids[i]): [] for i in images}
    for one in kept_detections(folder / DETECTIONS):
        if one["image_id"] in wanted:
            wanted[one["image_id"]].append(one)
    pictures = []
    for i, own in zip(images, wanted.values(), strict=True):
        boxes = torch.tensor([one["bbox"] for one in own], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        scores = torch.tensor([one["score"] for one in own], dtype=torch.float32)
        labels = torch.tensor([label_of[one["category_id"]] for one in own], dtype=torch.int64)
        pictures.append(picture_of(data.val, i, Detections(boxes, scores, labels)))
    return Gallery(record, data.statistics.names, data.statistics.groups, pictures)


def recognition_of(folder: Path, shift: float | None = None) -> dict[str, tuple[int, int, int]] | None:
    """Objects, localised and recognised ones by frequency group, from the kept detections of a run; None if it has none.

    Args:
        shift: tau of ``PostHocAdjustment``, with which the weights of the run are evaluated again; None for the kept detections.
    """
    if not (folder / DETECTIONS).exists():
        return None
    config = read_config(folder)
    evaluator = build_evaluator(config, read_data(config))
    if shift is None:
        evaluator.process_results(kept_detections(folder / DETECTIONS))
        return evaluator.recognition()
    link = f"+loss.chain.posthoc={{_target_:afl.losses.PostHocAdjustment,_partial_:true,tau:{shift}}}"
    with tempfile.TemporaryDirectory() as scratch:
        evaluate_run(load_run(folder, [link, "trainer.pictures=0"]), Path(scratch))
        evaluator.process_results(kept_detections(Path(scratch) / DETECTIONS))
    return evaluator.recognition()


def figures_on_training_images(folder: Path) -> dict[str, Any] | None:
    """The metrics of a run on its training images, without augmentation; None if its weights are not in ``folder``."""
    if not (folder / "checkpoints" / LAST).exists():
        return None
    run = load_run(folder, ["trainer.pictures=0"])
    with tempfile.TemporaryDirectory() as scratch:
        metrics = evaluate_run(run, Path(scratch), on_training_images=True)
    return {name: value for name, value in metrics.items() if name != "per_class"}
