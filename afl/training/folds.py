"""Evaluates two-fold runs together over both validation halves, so that every instance is validated once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from afl.evaluation import CocoEvaluator, group_means
from afl.evaluation.evaluator import fixed_group_means
from afl.tracking.record import FINISHED, Record, read_record
from afl.training.build import ConfigError
from afl.training.data import read_data
from datasets.errors import reason
from datasets.statistics import frequency_groups

CONFIG, RECORD, DETECTIONS = "config.yaml", "record.json", "detections.json"


@dataclass(frozen=True)
class Fold:
    """The ground truth and the detections of one fold.

    Attributes:
        truth: COCO-format dictionary of the validation half.
        detections: COCO results of that half: ``image_id``, ``category_id``, ``bbox`` (x, y, width, height), ``score``.
        train_images: (C,) training images of each class, in the order of ``truth["categories"]``.
    """

    truth: Mapping
    detections: Sequence[Mapping]
    train_images: np.ndarray


@dataclass(frozen=True)
class FoldedMetrics:
    """The evaluation of all folds together.

    Attributes:
        metrics: AP, AP50 ... AR in [0, 1]; None where undefined.
        per_class: AP by class name.
        groups: "r", "c" or "f" by class name: LVIS's rule on the mean of the folds' training image counts.
        left_out: classes that AP_r, AP_c and AP_f leave out, because one fold has no training image of them.
    """

    metrics: dict[str, float | None]
    per_class: dict[str, float | None]
    groups: dict[str, str]
    left_out: tuple[str, ...]


def evaluate_folds(
    folds: Sequence[Fold], *, max_detections: int = 100, backend: str = "fast", image_cap: int | None = None
) -> FoldedMetrics:
    """Compute COCO's metrics over the union of the folds' validation images.

    Args:
        folds: folds of one data set with disjoint validation images.
        max_detections, backend, image_cap: as in ``CocoEvaluator``.

    Raises:
        ValueError: the folds have different classes, share a validation image, or a detection names an image or
            category that its fold does not have.
    """
    categories = folds[0].truth["categories"]
    if any(fold.truth["categories"] != categories for fold in folds):
        raise ValueError("the folds have different classes: give the folds of one data set")
    images = [image for fold in folds for image in fold.truth["images"]]
    if len({image["id"] for image in images}) < len(images):
        raise ValueError("two folds validate the same image: give folds with disjoint validation halves")
    listed = [annotation for fold in folds for annotation in fold.truth["annotations"]]
    annotations = [annotation | {"id": number} for number, annotation in enumerate(listed, start=1)]
    evaluator = CocoEvaluator(
        {"images": images, "annotations": annotations, "categories": categories},
        max_detections,
        backend,
        image_cap=image_cap,
    )
    evaluator.process_results(one for fold in folds for one in _of_own_images(fold))
    result = evaluator.evaluate()
    per_class = result.pop("per_class")
    counts = np.stack([fold.train_images for fold in folds])
    groups = frequency_groups(counts.mean(axis=0))
    names = list(per_class)
    left_out = tuple(name for name, own in zip(names, counts.T, strict=True) if not own.all())

    def kept(values: Mapping[str, float | None]) -> dict[str, float | None]:
        return {name: None if name in left_out else value for name, value in values.items()}

    if image_cap is not None:
        result |= fixed_group_means(kept(evaluator.per_class_fixed), groups)
    return FoldedMetrics(
        metrics=result | group_means(kept(per_class), groups),
        per_class=per_class,
        groups=dict(zip(names, groups, strict=True)),
        left_out=left_out,
    )


def fold_record(folders: Sequence[Path]) -> Record:
    """Combine the finished runs of all folds into one record.

    The metrics come from ``evaluate_folds`` on the runs' saved detections. Times and steps are sums over the runs.
    ``protocol["folds"]`` gives the number of folds and the classes that the group means leave out.

    Args:
        folders: run directories that differ only in ``dataset.fold``.

    Raises:
        ConfigError: a folder has no finished run, detections or fold, or the runs differ in more than the fold.
        DataError: the data set cannot be read.
        ValueError: the detections do not fit the data.
    """
    if len(folders) < 2:
        raise ConfigError("a two-fold evaluation needs the runs of both folds")
    records = [_finished(folder) for folder in folders]
    settings = [_without_fold(record.config) for record in records]
    if any(own != settings[0] for own in settings):
        raise ConfigError(
            f"{' and '.join(map(str, folders))} differ in more than dataset.fold: give the folds of one cell"
        )
    folds = []
    for folder in folders:
        config = OmegaConf.load(folder / CONFIG)
        data = read_data(config)
        folds.append(Fold(data.val.coco_dict(), kept_detections(folder / DETECTIONS), data.statistics.images))
    folded = evaluate_folds(
        folds,
        max_detections=config.dataset.max_detections,
        backend=config.trainer.evaluator,
        image_cap=config.dataset.max_detections if config.trainer.get("fixed_detections") else None,
    )
    names = f", without {', '.join(folded.left_out)}" if folded.left_out else ""
    note = f"{len(folds)} together; group means leave out {len(folded.left_out)} classes{names}"
    sources = _joined([record.git for record in records], "source")
    return replace(
        records[0],
        key="+".join(record.key for record in records),
        config=settings[0],
        protocol=records[0].protocol | {"folds": note},
        metrics=folded.metrics,
        per_class=folded.per_class,
        groups=folded.groups,
        gradient_dynamics={},
        environment=records[0].environment | _joined([record.environment for record in records], "device"),
        # No single commit has code of several sources.
        git=records[0].git | ({"sha": None, "dirty": None, **sources} if sources else {}),
        data_hash="+".join(str(record.data_hash) for record in records),
        train_seconds=sum(record.train_seconds or 0 for record in records),
        eval_seconds=sum(record.eval_seconds or 0 for record in records),
        steps=sum(record.steps or 0 for record in records),
        curves=None,
    )


def _joined(parts: Sequence[Mapping], name: str) -> dict[str, str]:
    """The different values of ``name`` in the parts, joined by ``+``; empty if all are equal."""
    values = dict.fromkeys(str(part.get(name)) for part in parts)
    return {name: "+".join(values)} if len(values) > 1 else {}


def _of_own_images(fold: Fold) -> Sequence[Mapping]:
    own = {image["id"] for image in fold.truth["images"]}
    for one in fold.detections:
        if one["image_id"] not in own:
            raise ValueError(
                f"a detection has image_id = {one['image_id']}, which its fold does not validate: evaluate each fold with its "
                "own detections"
            )
    return fold.detections


def _finished(folder: Path) -> Record:
    for name in (CONFIG, RECORD, DETECTIONS):
        if not (folder / name).is_file():
            raise ConfigError(
                f"{folder} has no {name}: it is not a finished run of scripts.train; train this fold"
            )
    record = read_record(folder / RECORD)
    if record.status != FINISHED:
        raise ConfigError(f"the run in {folder} has failed: {record.error}; train this fold again")
    if "fold" not in record.config.get("dataset", {}):
        raise ConfigError(
            f"the data set {record.dataset} of {folder} has no folds: give runs with dataset.fold"
        )
    return record


def _without_fold(config: Mapping) -> dict:
    """A run's settings without the fold and without the annotation files that depend on it."""
    dataset = {key: value for key, value in config["dataset"].items() if key not in ("fold", "train", "val")}
    return {key: value for key, value in config.items() if key not in ("paths", "dataset")} | {
        "dataset": dataset
    }


def kept_detections(path: Path) -> list[dict]:
    """Read the detections that a run saved in ``path``, in COCO's results format.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {reason(error)}; evaluate the run again") from error
