"""What a run starts from: a checkpoint, or features learnt on generated images of other classes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from afl.training.build import ConfigError
from afl.training.compose import compose_cell
from afl.training.distributed import World
from detectors.backbone import load_features

SHAPES = "shapes"
log = logging.getLogger(__name__)


def start_from(
    config: DictConfig, detector: nn.Module, world: World, pretrain: Callable[[DictConfig], Path]
) -> None:
    """Load ``config.initial_weights`` into the detector: null, ``shapes``, or a file with weights under ``model``.

    Everything whose name and shape fit is taken; the class layer of another set of classes does not fit and stays fresh.

    Args:
        pretrain: gives the checkpoint of a pre-training config, making it first if need be.

    Raises:
        ConfigError: the file does not exist, or many processes ask for features that one has to make.
    """
    source = config.initial_weights
    if source is None:
        return
    if source == SHAPES:
        if world.size > 1:
            raise ConfigError(
                "initial_weights=shapes is made by one process: train it without torchrun first "
                "(experiment=pretrain), then give its checkpoint as initial_weights"
            )
        path = pretrain(pretraining_config(config))
    else:
        path = _file(source)
    fresh = load_features(detector, path)
    if world.is_main:
        log.info("starts from %s; fresh: %s", path, ", ".join(fresh) or "nothing")


def identity(config: DictConfig) -> str:
    """What the run key must know of the initial weights: their making, or the content of their file."""
    source = config.initial_weights
    if source is None:
        return ""
    if source == SHAPES:
        text = OmegaConf.to_yaml(pretraining_config(config), resolve=True, sort_keys=True)
        kept = {
            key: value
            for key, value in OmegaConf.create(text).items()
            if key not in ("paths", "logger", "dataset")
        }
        del kept["trainer"]["threads"], kept["trainer"]["progress"], kept["trainer"]["num_workers"]
        return hashlib.sha256(OmegaConf.to_yaml(OmegaConf.create(kept), sort_keys=True).encode()).hexdigest()[
            :12
        ]
    return hashlib.sha256(_file(source).read_bytes()).hexdigest()[:12]


def pretraining_config(config: DictConfig) -> DictConfig:
    """The run that gives this detector its features: same detector and backbone, focal loss, other classes, seed 0."""
    cell = config.cell
    pretraining = compose_cell(detector=cell.detector, loss="fl", overrides=["experiment=pretrain"])
    with open_dict(pretraining):
        for part in ("backbone", "pyramid", "detector", "paths"):
            pretraining[part] = config[part]
        pretraining.logger = OmegaConf.create({"_target_": "afl.tracking.NullTracker", "_partial_": True})
        for name in ("device", "threads", "progress", "num_workers"):
            pretraining.trainer[name] = config.trainer[name]
    return pretraining


def _file(source: str) -> Path:
    path = Path(source)
    if not path.is_file():
        raise ConfigError(f"initial_weights={source}: no such file; give a checkpoint, `shapes`, or null")
    return path
