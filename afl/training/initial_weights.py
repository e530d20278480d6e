"""What a run starts from: a checkpoint, or features learnt on generated images of other classes."""

from __future__ import annotations

import logging
from pathlib import Path

from hydra import compose
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from afl.training.build import ConfigError
from afl.training.distributed import World, barrier
from detectors.backbone import load_features

SHAPES = "shapes"
log = logging.getLogger(__name__)


def start_from(config: DictConfig, detector: nn.Module, world: World) -> None:
    """Load ``config.initial_weights`` into the detector: null, ``shapes``, or a file with weights under ``model``.

    Everything whose name and shape fit is taken; the class layer of another set of classes does not fit and stays fresh.

    Raises:
        ConfigError: the file does not exist.
    """
    source = config.initial_weights
    if source is None:
        return
    if source == SHAPES:
        path = pretrained_on_shapes(config, world)
    else:
        path = Path(source)
        if not path.is_file():
            raise ConfigError(f"initial_weights={source}: no such file; give a checkpoint, `shapes`, or null")
    fresh = load_features(detector, path)
    if world.is_main:
        log.info("starts from %s; fresh: %s", path, ", ".join(fresh) or "nothing")


def pretraining_config(config: DictConfig) -> DictConfig:
    """The run that gives this detector its features: same detector and backbone, focal loss, other classes, seed 0."""
    cell = config.cell
    pretraining = compose("config", overrides=[f"detector={cell.detector}", "loss=fl", "experiment=pretrain"])
    with open_dict(pretraining):
        pretraining.backbone, pretraining.pyramid = config.backbone, config.pyramid
        pretraining.detector = config.detector
        pretraining.paths, pretraining.logger = config.paths, OmegaConf.create(
            {"_target_": "afl.tracking.NullTracker", "_partial_": True}
        )
        for name in ("device", "threads", "progress", "num_workers"):
            pretraining.trainer[name] = config.trainer[name]
        pretraining.cell = {"detector": cell.detector, "loss": "fl", "dataset": pretraining.dataset.name}
    return pretraining


def pretrained_on_shapes(config: DictConfig, world: World) -> Path:
    """The checkpoint of that run, which is made first if it is not there; who comes second waits.

    Raises:
        ConfigError: many processes ask at once for features that do not exist yet.
    """
    from afl.training.run import run_cell  # that module starts runs with this one

    if world.size > 1:
        raise ConfigError("initial_weights=shapes is for one process; make them first, without torchrun")
    record = run_cell(pretraining_config(config), wait=True)
    barrier(world)
    return Path(config.paths.output) / record.key / "checkpoints" / "last.pt"
