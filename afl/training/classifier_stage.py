"""The second stage of losses that start from a finished run: retrained class layers, or a calibrated evaluation."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from afl.config import composed
from detectors.heads import normal_init, prior_bias

FIRST_STAGE = "fl"


def wants_second_stage(detector: nn.Module) -> bool:
    """Whether a loss of the detector retrains class layers."""
    return any(loss.class_layers_only for loss in detector.classification.values())


def first_stage(config: DictConfig) -> DictConfig:
    """The run that the second stage starts from: the same settings with focal loss."""
    stage = copy.deepcopy(config)
    with open_dict(stage):
        stage.loss = _first_loss()
        stage.cell.loss = FIRST_STAGE
    return stage


def only_evaluates(config: DictConfig) -> bool:
    """Whether a run trains exactly as its first stage does, because its loss is focal loss with a post-hoc remedy."""
    own: Any = OmegaConf.to_container(config.loss)
    return (own.get("chain") or {}).pop("posthoc", None) is not None and own == _first_loss()


@functools.cache
def _first_loss() -> DictConfig:
    return composed([f"+loss={FIRST_STAGE}"], None).loss


def keep_all_but_class_layers(detector: nn.Module) -> None:
    """Freeze all parameters except those of the last classification layers, and the running statistics of batch norms."""
    detector.requires_grad_(False)
    for layers in detector.class_layers().values():
        for layer in layers:
            layer.requires_grad_(True)
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0


@torch.no_grad()
def restart_class_layers(detector: nn.Module) -> None:
    """Reinitialise every class layer: random weights, and the bias that corresponds to the prior of its map."""
    for name, layers in detector.class_layers().items():
        for layer in layers:
            normal_init(layer, bias=prior_bias(detector.classification[name].info.prior))
