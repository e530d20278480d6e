"""Builds the objects of a run from its composed config. The config only names constructors; this module calls them in order."""

from __future__ import annotations

import contextlib
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import hydra
import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from torch import nn

from afl.config import CONF, ConfigError
from afl.losses.contract import MapInfo, MapLoss
from afl.training.duration import Duration
from afl.training.loop import LoopOptions
from afl.training.schedule import Schedule, warmed_up
from detectors.contract import ClassCounts

PRECISIONS = {"bf16": torch.bfloat16, "fp32": None}


@dataclass(frozen=True)
class Part:
    """The callables that one part of a config may name.

    Attributes:
        place: pattern of the part's dotted name.
        name: pattern of the callable's full name, as in its definition.
        base: class that the callable must derive from; ``type`` for any class, None for a function.
    """

    place: str
    name: str
    base: type | None

    def allows(self, found: Any) -> bool:
        """Whether the part may call ``found``."""
        name = f"{getattr(found, '__module__', None)}.{getattr(found, '__qualname__', None)}"
        if not re.fullmatch(self.name, name):
            return False
        if self.base is None:
            return isinstance(found, FunctionType)
        return isinstance(found, type) and (self.base is type or issubclass(found, self.base))


# A config may come from a stranger's checkpoint. Each part may only call callables of its kind: only the data set's parts read
# or generate data, and only the logger's part creates a tracker.
PARTS = (
    Part(r"loss", r"afl\.losses\.[\w.]+", nn.Module),
    Part(r"detector|backbone", r"detectors\.[\w.]+", nn.Module),
    Part(r"dataset\.(train|eval)_transform", r"datasets\.(transforms|color)\.\w+", type),
    Part(r"dataset\.(train|val)", r"datasets\.\w+\.(read|generate)_\w+", None),
    Part(r"dataset\.folder", r"datasets\.\w+\.generate_\w+", None),
    Part(r"optimizer", r"torch\.optim\.\w+\.\w+", torch.optim.Optimizer),
    Part(r"schedule", r"afl\.training\.schedule\.\w+_schedule", None),
    Part(r"logger", r"afl\.tracking\.(wandb|local|tracker)\.\w+Tracker", type),
)


def check_targets(config: Any, place: str = "") -> None:
    """Reject every ``_target_`` that its part of the config may not call: a config is data, not code.

    Args:
        config: the whole config or a part of it; ``place``: the dotted name of the part, empty for the whole.

    Raises:
        ConfigError: the place and the name of the callable.
    """
    if OmegaConf.is_dict(config) or isinstance(config, dict):
        target = config.get("_target_")
        if target is not None and not _may_call(str(target), place):
            raise ConfigError(
                f"{place}._target_ is {target!r}; this part of a config cannot call it. Losses come from afl.losses, detectors and "
                "backbones from detectors, transforms and readers from datasets, optimisers from torch.optim"
            )
        for key in config:
            if isinstance(config, dict) or not OmegaConf.is_missing(config, key):
                check_targets(config[key], f"{place}.{key}" if place else str(key))
    elif OmegaConf.is_list(config) or isinstance(config, list):
        for i in range(len(config)):
            check_targets(config[i], f"{place}[{i}]")


def _may_call(target: str, place: str) -> bool:
    parts = [part for part in PARTS if re.fullmatch(rf"({part.place})([.\[].*)?", place)]
    if not parts or not target.startswith(("afl.", "datasets.", "detectors.", "torch.optim.")):
        return False
    try:
        found = pkgutil.resolve_name(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{place}._target_ is {target!r}, which does not exist ({error})") from error
    return any(part.allows(found) for part in parts)


def instantiate(config: DictConfig, **arguments: Any) -> Any:
    """Call the constructor that a part of a config names; lists and dicts arrive as plain Python.

    Args:
        config: a part of a whole config (``config.loss``); its dotted name decides which callables are allowed.
        arguments: passed on unchanged. Hydra would convert dataclasses and tensors if they were merged into the config.

    Raises:
        ConfigError: the part may not call this constructor.
    """
    check_targets(config, config._get_full_key(None))
    # A copy: Hydra would permanently resolve the references of the whole config.
    return _call(OmegaConf.to_container(config, resolve=True), arguments, config._get_full_key(None))


def _call(config: dict[str, Any], arguments: dict[str, Any], place: str) -> Any:
    with explained(place):
        try:
            if not arguments:
                return hydra.utils.instantiate(config, _convert_="all")
            return hydra.utils.instantiate(config, _convert_="all", _partial_=True)(**arguments)
        except InstantiationException as error:
            # Raise the constructor's own error without Hydra's wrapper.
            cause: BaseException = error
            while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
                cause = cause.__cause__
            raise cause from None


@contextlib.contextmanager
def explained(place: str) -> Iterator[None]:
    """Turn the errors of a constructor that received unsuitable settings into one that names their place in the config.

    Raises:
        ConfigError: in place of a TypeError or an IndexError.
    """
    try:
        yield
    except (TypeError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{place} cannot be built: {reason}; correct its settings") from error


def bound(config: DictConfig) -> Any:
    """The constructor of an optimiser or a schedule with its arguments bound; arguments that are null are left out.

    All optimisers use the same argument names in the config, and so do all schedules, so that one can replace another completely.
    """
    check_targets(config, config._get_full_key(None))
    values: Any = OmegaConf.to_container(config, resolve=True)
    given = {name: value for name, value in values.items() if value is not None}
    return _call(given, {}, config._get_full_key(None))


def check_preset(config: DictConfig) -> None:
    """Reject an experiment that is combined with a detector or data set that it was not made for.

    Raises:
        ConfigError: naming the choices that belong together.
    """
    if config.preset is None:
        return
    made_for = " ".join(f"{part}={config.preset[part]}" for part in ("detector", "dataset"))
    chosen = " ".join(f"{part}={config.cell[part]}" for part in ("detector", "dataset"))
    if chosen != made_for:
        raise ConfigError(
            f"the experiment is the protocol of {made_for}, not of {chosen}; leave one of them out, or write {chosen} "
            f"regime={_published_regime(config.cell.dataset)} without the experiment"
        )


def _published_regime(dataset: str) -> str:
    """The published regime of a data set: its file in ``conf/regime`` if it exists, otherwise the one of MS COCO."""
    regime = f"published_{dataset}"
    return regime if (CONF / "regime" / f"{regime}.yaml").exists() else "published"


def build_detector(config: DictConfig, classes: ClassCounts) -> nn.Module:
    """Build the backbone, the classification losses and the detector that uses them."""
    backbone = instantiate(config.backbone)
    make_loss = instantiate(config.loss)

    def loss(info: MapInfo) -> MapLoss:
        with explained("loss"):
            return make_loss(info)

    return instantiate(config.detector, backbone=backbone, classes=classes, loss=loss)


def loop_options(config: DictConfig, *, num_images: int, world_size: int) -> LoopOptions:
    """The options of the loop, with all durations resolved to steps.

    Raises:
        ConfigError: the precision is unknown, or the batch cannot be divided evenly.
    """
    trainer = config.trainer
    if trainer.precision not in PRECISIONS:
        raise ConfigError(f"trainer.precision is {trainer.precision!r}; known are {', '.join(PRECISIONS)}")
    if trainer.batch_size % (trainer.accumulate * world_size):
        raise ConfigError(
            f"trainer.batch_size={trainer.batch_size} cannot be divided evenly among {world_size} processes "
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
        raise ConfigError(f"trainer.max_duration is {trainer.max_duration!r}, which is less than one step")
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
    """The learning-rate factor by step, including warm-up; the warm-up takes at most a tenth of the run."""
    warmup = Duration.parse(config.schedule.warmup).in_steps(
        images_per_epoch=num_images, batch_size=config.trainer.batch_size, total_steps=total_steps
    )
    with explained("schedule.factory"):
        schedule = bound(config.schedule.factory)(total_steps=total_steps)
        schedule(0)
    return warmed_up(schedule, min(warmup, total_steps // 10), config.schedule.warmup_start)
