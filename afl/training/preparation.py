"""Prepares a run before its first step, so that invalid settings and data are rejected before training."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import nn

from afl.config import ConfigError
from afl.tracking import MetricsLog, read_metrics, unwritable
from afl.training.build import bound, build_detector, build_schedule, explained, loop_options
from afl.training.checkpoint import (
    CheckpointError,
    load_checkpoint,
    load_latest,
    reason,
    save_checkpoint,
    set_aside,
)
from afl.training.classifier_stage import first_stage, keep_all_but_class_layers, wants_second_stage
from afl.training.compiled import compiled_forward, wants_compiled
from afl.training.data import about, training_batches
from afl.training.distributed import barrier, from_main
from afl.training.evaluation import Evaluation
from afl.training.gradient_dynamics import GradientDynamics
from afl.training.initial_weights import start_from
from afl.training.learner import Learner, moving_average
from afl.training.loop import Training
from afl.training.optimizer import build_optimizer
from afl.training.prior import initialise_priors
from afl.training.run_identity import CURVES, Run
from datasets import DataError

Pretrain = Callable[..., Path]
log = logging.getLogger(__name__)


def prepare(run: Run, pretrain: Pretrain) -> tuple[Training, Evaluation]:
    """Build the run's detector and everything else that training needs, restored from the last checkpoint if there is one.

    Args:
        pretrain: returns the checkpoint of a pre-training config, training it first if it does not exist.

    Raises:
        ConfigError: the config cannot be run.
        DataError: the data cannot be used for training or evaluation, or a class name cannot be written to a record.
        CheckpointError: the run has checkpoints, but none of them can be used.
    """
    config, data, world = run.config, run.data, run.world
    _check_record(run)
    options = loop_options(config, num_images=len(data.train), world_size=world.size)
    schedule = build_schedule(config, num_images=len(data.train), total_steps=options.total_steps)
    evaluation = Evaluation(config, data, world, run.folder, options)
    evaluation.check()
    if world.is_main:
        warn_of_frozen_random_weights(config)
    detector = build_detector(config, data.classes)
    places = any(loss.rescoring is not None for loss in detector.classification.values())
    description = about(run.plain, data, places=places)
    if wants_second_stage(detector):
        keep_all_but_class_layers(detector)
    saved = _resume(run)
    if saved is None and run.only_evaluates:
        _take_over_first_stage(run, pretrain, description)
        saved = _resume(run)
    wishes = (loss.image_repeats for loss in detector.classification.values())
    repeats = next((wish for wish in wishes if wish is not None), None)
    start_step = saved["step"] if saved else 0
    batches = training_batches(config, data, world, start_step, repeats)
    loaded: list[nn.Module] = []
    initial = saved.get("initial_weights") if saved else None
    if saved is None:
        make = partial(_with_kept_random_state, pretrain)
        loaded, initial = start_from(config, detector, world, make, data.statistics.names)
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    detector.to(world.device, memory_format=layout)
    if saved is None:
        initialise_priors(detector, batches, world, channels_last=options.channels_last, loaded=loaded)
    with explained("optimizer.factory"):
        optimizer = build_optimizer(bound(config.optimizer.factory), detector, config.optimizer.weight_decay)
    average = moving_average(detector, config.trainer.ema) if config.trainer.ema else None
    learner = Learner(detector, optimizer, average)
    if saved:
        _restore(learner, saved, run)
        if world.is_main:
            log.info("%s continues from step %d of %d", run.key.name, learner.step, options.total_steps)
    compiled = wants_compiled(config.trainer.compile, world.device)
    training = Training(
        learner=learner,
        batches=batches,
        schedule=schedule,
        options=options,
        world=world,
        folder=run.folder,
        dynamics=GradientDynamics(detector.classification, data.statistics.groups),
        interruption=run.interruption,
        kept={
            "run": run.key.digest,
            "source": run.git["source"],
            "about": description,
            "initial_weights": initial,
        },
        compiled=compiled_forward(detector) if compiled else None,
    )
    return training, evaluation


def warn_of_frozen_random_weights(config: DictConfig) -> None:
    """Log one line if parts of the backbone keep their random weights or their untrained statistics."""
    backbone = config.backbone
    frozen = backbone.get("frozen_stages") or backbone.get("frozen_batch_norm")
    if frozen and not backbone.get("pretrained") and config.initial_weights is None:
        log.warning(
            "the backbone has random weights (backbone.pretrained=false), but parts of it are frozen, so it can hardly learn; add "
            "backbone.frozen_batch_norm=false backbone.frozen_stages=0, or give a checkpoint as initial_weights"
        )


def _check_record(run: Run) -> None:
    """Reject config values and class names that cannot be written to the record at the end."""
    for where, problem in unwritable(run.plain):
        raise ConfigError(f"{where} {problem}")
    for index in (run.data.train, run.data.val):
        for category, name in zip(index.category_ids.tolist(), index.category_names, strict=True):
            for _, problem in unwritable(name):
                raise DataError(
                    f"{index.sources[0]}: the name of category {category} {problem}; rename the category"
                )


def _resume(run: Run) -> dict[str, Any] | None:
    """The checkpoint to continue from, the same on every process; None to start from the beginning."""
    folder, world = run.folder / "checkpoints", run.world
    saved, passed_over = load_latest(folder, run.key.digest)
    step = saved["step"] if saved else 0
    main = from_main(world, step)
    if main != step:
        raise CheckpointError(
            f"process {world.rank} reads step {step} from {folder}, but process 0 reads step {main}; check that all machines "
            "share the folder"
        )
    if saved:
        run.compare_code(saved.get("source"), f"{run.key.name} was trained to step {step}")
    barrier(world)
    if passed_over and world.is_main:
        for note in passed_over:
            log.warning("%s", note)
        log.warning(
            "it is kept as %s; the run uses the previous checkpoint of step %d", set_aside(folder), step
        )
    return saved


def _take_over_first_stage(run: Run, pretrain: Pretrain, description: Mapping[str, Any]) -> None:
    """Make the final checkpoint and the curves of the first stage those of the run, which then only evaluates the checkpoint.

    The evaluations of the first stage are left out of the curves, because they are without the post-hoc remedy.

    Raises:
        CheckpointError: the first stage is finished, but its checkpoint is missing or damaged.
    """
    path = _with_kept_random_state(pretrain, first_stage(run.config), of_features=False)
    try:
        saved = load_checkpoint(path)
    except CheckpointError as error:
        raise CheckpointError(
            f"{run.title} evaluates the weights of {path.parents[1].name}, which cannot be used: {error}; delete {path.parents[1]} to "
            "train them again"
        ) from error
    log.info("%s is trained like %s, and evaluates its weights", run.key.name, path.parents[1].name)
    with MetricsLog(run.folder / CURVES) as curves:
        for line in read_metrics(path.parents[1] / CURVES):
            if not any(name.startswith("val/") for name in line):
                curves.log(line.pop("step"), line)
    own = {"run": run.key.digest, "about": description}
    save_checkpoint(run.folder / "checkpoints", {**saved, **own})


def _restore(learner: Learner, saved: dict[str, Any], run: Run) -> None:
    try:
        learner.restore(saved)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"the checkpoint in {run.folder / 'checkpoints'} does not fit the detector that this code builds "
            f"({reason(error)}); check out the code that wrote it, or delete that folder to train from the beginning"
        ) from error


def _with_kept_random_state(pretrain: Pretrain, config: DictConfig, *, of_features: bool) -> Path:
    """Call ``pretrain`` and restore the random state, which otherwise depends on whether the features already existed."""
    with kept_random_state():
        return pretrain(config, of_features=of_features)


@contextlib.contextmanager
def kept_random_state() -> Iterator[None]:
    """Restore the random state of torch, numpy and Python at the end."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    arrays, numbers = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            np.random.set_state(arrays)
            random.setstate(numbers)
