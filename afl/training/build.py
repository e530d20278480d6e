"""From a composed config to the objects of a run. A config only calls constructors; this calls them in order."""

from __future__ import annotations

import pkgutil
import re
from typing import Any

import hydra
import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from torch import nn

from afl.training.duration import Duration
from afl.training.loop import LoopOptions
from afl.training.schedule import Schedule, warmed_up
from detectors.contract import ClassCounts

PRECISIONS = {"bf16": torch.bfloat16, "fp32": None}
# What a config, which may be somebody else's and come inside a checkpoint, can call: constructors of these packages, and
# functions that read a data set, make a generated one or a schedule. Nothing that writes what and where the config says.
OWN_PACKAGES = ("afl.losses.", "datasets.", "detectors.", "torch.optim.")
OWN_OTHERS = re.compile(
    r"afl\.tracking\.wandb\.\w+Tracker|afl\.training\.schedule\.\w+_schedule|datasets\.\w+\.(read|generate)_\w+"
)


class ConfigError(ValueError):
    """A config that cannot be run, with what would fix it."""


def check_targets(config: Any, path: str = "") -> None:
    """Refuse every ``_target_`` that is no part of a run as ``OWN_PACKAGES`` says: a config is data, not code."""
    if OmegaConf.is_dict(config) or isinstance(config, dict):
        target = config.get("_target_")
        if target is not None and not _is_own(str(target), path):
            raise ConfigError(
                f"{path}._target_ is {target!r}; only classes of {', '.join(OWN_PACKAGES)} trackers, schedules and readers of "
                "this project may be called"
            )
        for key in config:
            if not OmegaConf.is_missing(config, key):
                check_targets(config[key], f"{path}.{key}" if path else str(key))
    elif OmegaConf.is_list(config):
        for i in range(len(config)):
            check_targets(config[i], f"{path}[{i}]")


def _is_own(target: str, path: str) -> bool:
    """Whether a dotted name is of something that a config may call; what own modules import has such a name too."""
    if not target.startswith(("afl.", "datasets.", "detectors.", "torch.optim.")):
        return False
    try:
        found = pkgutil.resolve_name(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{path}._target_ is {target!r}, which does not exist ({error})") from error
    name = f"{getattr(found, '__module__', None)}.{getattr(found, '__qualname__', None)}"
    return (isinstance(found, type) and name.startswith(OWN_PACKAGES)) or bool(OWN_OTHERS.fullmatch(name))


def instantiate(config: DictConfig, **arguments: Any) -> Any:
    """Call the constructor a config names; lists and dicts arrive as plain Python.

    ``arguments`` are handed over as they are: merged into the config, dataclasses and tensors would be converted.
    """
    check_targets(config)
    # On its own: Hydra would resolve, for good, what other parts of the whole config refer to.
    config = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    try:
        if not arguments:
            return hydra.utils.instantiate(config, _convert_="all")
        return hydra.utils.instantiate(config, _convert_="all", _partial_=True)(**arguments)
    except InstantiationException as error:
        # What the constructor had to say, without the wrapping of a wrapping.
        while isinstance(error, InstantiationException) and error.__cause__ is not None:
            error = error.__cause__
        raise error from None


def bound(config: DictConfig) -> Any:
    """The constructor of an optimiser or a schedule with its numbers bound; an argument that is null is left out.

    Optimisers share one set of names in the config, as schedules do, so that one can replace another completely.
    """
    given = {
        name: value
        for name, value in OmegaConf.to_container(config, resolve=True).items()
        if value is not None
    }
    return instantiate(OmegaConf.create(given))


def check_preset(config: DictConfig) -> None:
    """Refuse an experiment with another detector or data set than it is made for.

    Raises:
        ConfigError: with the choices that go together.
    """
    if config.preset is None:
        return
    made_for = " ".join(f"{part}={config.preset[part]}" for part in ("detector", "dataset"))
    chosen = " ".join(f"{part}={config.cell[part]}" for part in ("detector", "dataset"))
    if chosen != made_for:
        raise ConfigError(
            f"the experiment is the protocol of {made_for}, not of {chosen}; leave one of them out, or write {chosen} regime=published "
            "without the experiment"
        )


def build_detector(config: DictConfig, classes: ClassCounts) -> nn.Module:
    """Backbone and detector with its classification losses."""
    backbone = instantiate(config.backbone)
    loss = instantiate(config.loss)
    return instantiate(config.detector, backbone=backbone, classes=classes, loss=loss)


def loop_options(config: DictConfig, *, num_images: int, world_size: int) -> LoopOptions:
    """Durations resolved to steps.

    Raises:
        ConfigError: an unknown precision, or a batch that cannot be shared out evenly.
    """
    trainer = config.trainer
    if trainer.precision not in PRECISIONS:
        raise ConfigError(f"trainer.precision is {trainer.precision!r}; known are {', '.join(PRECISIONS)}")
    if trainer.batch_size % (trainer.accumulate * world_size):
        raise ConfigError(
            f"trainer.batch_size={trainer.batch_size} cannot be shared by {world_size} processes "
            f"x trainer.accumulate={trainer.accumulate} parts"
        )

    def steps(text: str | None, total: int | None = None) -> int:
        if text is None:
            return 0
        return Duration.parse(text).in_steps(
            images_per_epoch=num_images, batch_size=trainer.batch_size, total_steps=total
        )

    total = steps(trainer.max_duration)
    if total < 1:
        raise ConfigError(f"trainer.max_duration is {trainer.max_duration!r}: no step to train")
    return LoopOptions(
        total_steps=total,
        batch_size=trainer.batch_size,
        accumulate=trainer.accumulate,
        autocast=PRECISIONS[trainer.precision],
        channels_last=trainer.channels_last,
        clip_norm=trainer.clip_norm,
        log_every=steps(trainer.log_every, total),
        checkpoint_every=steps(trainer.checkpoint_every, total),
        evaluate_every=steps(trainer.evaluate_every, total),
    )


def build_schedule(config: DictConfig, *, num_images: int, total_steps: int) -> Schedule:
    """The learning-rate factor by step, warm-up included; a warm-up never takes more than a tenth of the run."""
    warmup = Duration.parse(config.schedule.warmup).in_steps(
        images_per_epoch=num_images, batch_size=config.trainer.batch_size, total_steps=total_steps
    )
    schedule = bound(config.schedule.factory)(total_steps=total_steps)
    return warmed_up(schedule, min(warmup, total_steps // 10), config.schedule.warmup_start)
