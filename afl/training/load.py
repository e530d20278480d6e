"""Loads a trained detector from its run directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from afl.config import ConfigError, check_values, read_config
from afl.training.build import build_detector
from afl.training.checkpoint import LAST, CheckpointError, load_checkpoint
from afl.training.data import RunData, read_data
from detectors.backbone import evaluated_weights


@dataclass(frozen=True)
class LoadedRun:
    """A run's config, its data, and its detector with the weights that its evaluation used."""

    config: DictConfig
    data: RunData
    detector: nn.Module
    checkpoint: Path
    step: int


def load_run(folder: Path, overrides: Sequence[str] = (), checkpoint: Path | None = None) -> LoadedRun:
    """Rebuild the detector and the data of the run in ``folder``, on the CPU.

    Args:
        overrides: changes to the run's config, ``NAME=VALUE`` as on the command line.
        checkpoint: weights to use instead of the run's last checkpoint.

    Raises:
        ConfigError: ``folder`` is not a run directory, an override cannot be applied, or the data set has other classes than
            the weights.
        CheckpointError: the weights cannot be read, or belong to another detector.
    """
    config, data, detector = build_run(folder, overrides)
    path = checkpoint or folder / "checkpoints" / LAST
    state = load_checkpoint(path)
    _check_classes(state, data, path)
    step = load_weights(detector, state, path)
    return LoadedRun(config, data, detector.eval(), path, step)


def build_run(folder: Path, overrides: Sequence[str] = ()) -> tuple[DictConfig, RunData, nn.Module]:
    """Build the config, the data and the detector, with initial weights, of the run in ``folder``.

    Args:
        overrides: changes to the run's config, ``NAME=VALUE`` as on the command line.

    Raises:
        ConfigError: ``folder`` is not a run directory, or an override cannot be applied.
    """
    config = read_config(folder, overrides)
    check_values(config)
    data = read_data(config)
    return config, data, build_detector(config, data.classes)


def load_weights(detector: nn.Module, state: dict[str, Any], path: Path) -> int:
    """Load the evaluated weights of a checkpoint into ``detector``; returns their step.

    Args:
        state: from :func:`~afl.training.checkpoint.load_checkpoint`; ``path``: its file, for messages.

    Raises:
        CheckpointError: the weights are missing, belong to another detector, or are not finite.
    """
    try:
        weights, step = evaluated_weights(state), int(state["step"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"{path} does not contain the complete state of a run ({type(error).__name__}: {error})"
        ) from None
    own = detector.state_dict()
    if not isinstance(weights, dict) or not all(
        isinstance(value, torch.Tensor) for value in weights.values()
    ):
        raise CheckpointError(f"{path}: 'model' does not hold tensors by name")
    for name in sorted(own.keys() | weights.keys(), key=str):
        if name not in weights:
            raise CheckpointError(
                f"{path} has no weight {name!r}: it belongs to another detector than the config describes"
            )
        if name not in own:
            raise CheckpointError(f"{path} has a weight {name!r} that the detector of the config lacks")
        if weights[name].shape != own[name].shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(weights[name].shape)}, the detector needs {tuple(own[name].shape)}"
            )
        if weights[name].is_floating_point() and not torch.isfinite(weights[name]).all():
            bad = int((~torch.isfinite(weights[name])).sum())
            raise CheckpointError(f"{path}: {bad} of {weights[name].numel()} values of {name} are not finite")
    detector.load_state_dict(weights)
    return step


def _check_classes(state: dict[str, Any], data: RunData, path: Path) -> None:
    """Check that the data set has the classes that the weights were trained on, in the same order.

    Raises:
        ConfigError: the classes or their order differ.
    """
    difference = difference_of_classes(trained_classes(state), data.statistics.names)
    if difference:
        raise ConfigError(
            f"{', '.join(data.val.sources)}: the classes differ from those that {path} was trained on: {difference}"
        )


def trained_classes(state: Mapping[str, Any]) -> list[str]:
    """Names of the classes that the weights of a checkpoint were trained on, in the order of the labels; empty if unknown."""
    return list((state.get("about") or {}).get("names") or [])


def difference_of_classes(trained: Sequence[str], present: Sequence[str]) -> str:
    """How the classes of a data set differ from those that weights were trained on, in words; empty if they are the same or
    ``trained`` is empty."""
    if not trained or list(trained) == list(present):
        return ""
    missing = [name for name in trained if name not in present]
    other = [name for name in present if name not in trained]
    difference = "; ".join(
        f"{what} {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for what, names in (("it lacks", missing), ("only it has", other))
        if names
    )
    return difference or "they are in another order"
