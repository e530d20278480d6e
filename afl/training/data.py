"""The data of a run: two splits, statistics of their classes, loaders and an evaluator."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from afl.evaluation import CocoEvaluator, Evaluator, LvisEvaluator, VocEvaluator
from afl.losses import ImageRepeats
from afl.training.build import ConfigError, explained, instantiate
from afl.training.compiled import DIVISORS, DIVISORS_COMPILED, wants_compiled
from afl.training.distributed import World
from datasets import (
    AnnotationIndex,
    ClassStatistics,
    DetectionDataset,
    EpochPlan,
    ResizeTransform,
    aspect_groups,
    make_eval_loader,
    make_train_loader,
    repeat_factors,
    require_usable_splits,
)
from datasets.fractal import fractal_dimensions
from detectors.contract import ClassCounts

METRICS = ("coco", "lvis", "voc")


@dataclass(frozen=True)
class RunData:
    """Training and validation annotations, and the class statistics of the training split."""

    train: AnnotationIndex
    val: AnnotationIndex
    statistics: ClassStatistics

    @property
    def classes(self) -> ClassCounts:
        """Instances and images of each class in the training split, as tensors, and what computes where the class occurs."""
        # A closure, because copying a detector must not copy the annotations.
        train = self.train
        return ClassCounts(
            instances=torch.as_tensor(self.statistics.instances, dtype=torch.float32),
            images=torch.as_tensor(self.statistics.images, dtype=torch.float32),
            fractal_dimension=lambda: torch.from_numpy(fractal_dimensions(train)),
        )

    @property
    def fingerprint(self) -> str:
        """Digest of the content of both splits, independent of their folder."""
        return f"{self.train.content_hash[:16]}-{self.val.content_hash[:16]}"


def read_data(config: DictConfig) -> RunData:
    """Read both splits of ``config.dataset``.

    Raises:
        DataError: the splits have different classes.
    """
    train = instantiate(config.dataset.train)
    if config.subset is None:
        val = instantiate(config.dataset.val)
    else:
        with explained("subset"):
            train = val = learnable_images(train, **config.subset)
    require_usable_splits(train, val)
    return RunData(train=train, val=val, statistics=ClassStatistics.from_index(train))


def about(config: Mapping[str, Any], data: RunData, *, places: bool = False) -> dict[str, Any]:
    """The description of a detector that a checkpoint carries, so that its weights can be used without the data set.

    Args:
        config: the run's resolved configuration as plain dictionaries.
        places: whether the detector's losses need the distribution of the objects in the images.

    Returns:
        Plain values: ``config``, and for the C classes, in the order of the detector's labels: ``names``, ``category_ids`` in
        the data set, ``groups`` ("r", "c" or "f"), and training ``instances`` and ``images``; with ``places`` also
        ``fractal_dimension``.
    """
    spread = {"fractal_dimension": fractal_dimensions(data.train).tolist()} if places else {}
    return {
        "config": config,
        "names": list(data.statistics.names),
        "category_ids": data.train.category_ids.tolist(),
        "groups": list(data.statistics.groups),
        "instances": data.statistics.instances.tolist(),
        "images": data.statistics.images.tolist(),
        **spread,
    }


def learnable_images(
    index: AnnotationIndex, *, images: int, smallest_side: float, image_size: int
) -> AnnotationIndex:
    """The first images that have objects, none of which is crowd, difficult or too small to be learned.

    Args:
        images: number of images.
        smallest_side: smallest width and height of every object in pixels, after the image's long side is resized to
            ``image_size``.

    Raises:
        ConfigError: the split has fewer such images.
    """
    chosen = []
    for i in range(len(index)):
        own = index.annotations(i)
        boxes = index.boxes[own] * (image_size / max(index.heights[i], index.widths[i]))
        clean = not (index.crowd[own] | index.difficult[own]).any()
        if len(boxes) and clean and (boxes[:, 2:] - boxes[:, :2]).min() >= smallest_side:
            chosen.append(i)
        if len(chosen) == images:
            return index.select(chosen)
    raise ConfigError(
        f"only {len(chosen)} images have objects that are all at least {smallest_side:g} pixels wide and high at a long side of "
        f"{image_size}, but {images} are needed; lower subset.images or subset.smallest_side"
    )


def training_batches(
    config: DictConfig, data: RunData, world: World, start_step: int, repeats: ImageRepeats | None = None
):
    """Endless training batches, starting at ``start_step``; each optimiser step takes ``trainer.accumulate`` of them.

    Args:
        repeats: the image repetition that the loss asks for; None uses the data set's settings.
    """
    trainer, dataset = config.trainer, config.dataset
    transform = instantiate(
        (dataset.eval_transform if config.subset else dataset.train_transform)[config.family]
    )
    samples = DetectionDataset(
        data.train,
        transform,
        seed=config.seed,
        extreme_source=(dataset.extreme_source or "masks") if config.needs_extreme_points else None,
        federated=dataset.federated,
        cache_images=dataset.cache_images,
    )
    plan = EpochPlan(
        len(data.train),
        trainer.batch_size // trainer.accumulate,
        seed=config.seed,
        rank=world.rank,
        world_size=world.size,
        repeat_factors=_repeat_factors(config, data, repeats),
        # Batches of images with similar aspect ratios need less padding.
        groups=aspect_groups(data.train) if isinstance(transform, ResizeTransform) else None,
    )
    return make_train_loader(
        samples,
        plan,
        start_step=start_step * trainer.accumulate,
        num_workers=loader_processes(config),
        pin_memory=world.device.type == "cuda",
        divisors=DIVISORS_COMPILED if wants_compiled(trainer.compile, world.device) else DIVISORS,
    )


def _repeat_factors(config: DictConfig, data: RunData, repeats: ImageRepeats | None) -> np.ndarray | None:
    """Repeat factor of each training image that the data set or the loss asks for; None without repetition.

    Raises:
        ConfigError: both ask for repetition.
    """
    threshold, count_instances = config.dataset.repeat_threshold, config.dataset.repeat_by_instances
    if repeats is not None:
        if threshold:
            raise ConfigError(
                f"dataset.repeat_threshold={threshold:g} and loss={config.cell.loss} both repeat images; set "
                "dataset.repeat_threshold=null, or choose a loss without repeat-factor sampling"
            )
        threshold, count_instances = repeats.images / len(data.train), repeats.count_instances
    return repeat_factors(data.train, threshold, count_instances=count_instances) if threshold else None


def loader_processes(config: DictConfig) -> int:
    """``trainer.num_workers``, limited to the number of cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(config.trainer.num_workers, cores)


def evaluation_samples(config: DictConfig, data: RunData) -> DetectionDataset:
    """The validation images, transformed for the detector."""
    return DetectionDataset(
        data.val,
        instantiate(config.dataset.eval_transform[config.family]),
        cache_images=config.dataset.cache_images,
    )


def evaluation_batches(config: DictConfig, data: RunData, world: World):
    """Batches of this process's share of the validation images."""
    return make_eval_loader(
        evaluation_samples(config, data),
        config.trainer.eval_batch_size,
        rank=world.rank,
        world_size=world.size,
        num_workers=loader_processes(config),
        pin_memory=world.device.type == "cuda",
    )


def build_evaluator(config: DictConfig, data: RunData) -> Evaluator:
    """The evaluator of the data set's official metric: over all classes, by class, and by frequency group of the training split."""
    metric, truth = config.dataset.metric, data.val.coco_dict()
    limit = config.dataset.max_detections
    shared = {"groups": list(data.statistics.groups), "backend": config.trainer.evaluator}
    if config.trainer.get("fixed_detections"):
        shared["image_cap"] = limit
    if metric == "coco":
        return CocoEvaluator(truth, max_detections=limit, **shared)
    if metric == "lvis":
        return LvisEvaluator(truth, max_detections=limit, **shared)
    if metric == "voc":
        return VocEvaluator(truth, metric="area", **shared)
    raise ConfigError(f"dataset.metric is {metric!r}; known are {', '.join(METRICS)}")
