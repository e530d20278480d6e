"""A trained detector back from its run directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from afl.training.build import ConfigError, build_detector
from afl.training.checkpoint import LAST, evaluated_weights, load_checkpoint
from afl.training.data import RunData, read_data

CONFIG = "config.yaml"


@dataclass(frozen=True)
class LoadedRun:
    """A run's config, data and detector, with the weights that its evaluation used."""

    config: DictConfig
    data: RunData
    detector: nn.Module
    checkpoint: Path
    step: int


def load_run(folder: Path, changes: DictConfig, checkpoint: Path | None = None) -> LoadedRun:
    """Rebuild what ``folder`` was trained as, on the CPU.

    Args:
        changes: values that replace those of the run's config, by existing keys.
        checkpoint: other weights than the run's last ones.

    Raises:
        ConfigError: not a run directory, or a change to a key that does not exist.
        CheckpointError: the weights cannot be read.
    """
    config, data, detector = build_run(folder, changes)
    path = checkpoint or folder / "checkpoints" / LAST
    state = load_checkpoint(path)
    detector.load_state_dict(evaluated_weights(state))
    return LoadedRun(config, data, detector.eval(), path, state["step"])


def build_run(folder: Path, changes: DictConfig) -> tuple[DictConfig, RunData, nn.Module]:
    """The config, the data and the detector, with fresh weights, of the run in ``folder``.

    Args:
        changes: values that replace those of the run's config, by existing keys.

    Raises:
        ConfigError: not a run directory, or a change to a key that does not exist.
    """
    if not (folder / CONFIG).exists():
        raise ConfigError(f"{folder} has no {CONFIG}: it is not a run directory of scripts.train")
    config = OmegaConf.load(folder / CONFIG)
    OmegaConf.set_struct(config, True)
    try:
        config = OmegaConf.merge(config, changes)
    except OmegaConfBaseException as error:
        raise ConfigError(f"the config of {folder} has no such key: {str(error).splitlines()[0]}") from None
    data = read_data(config)
    return config, data, build_detector(config, data.classes)
