"""The second training stage of losses that retrain only the class layers of a finished run."""

from __future__ import annotations

import copy

import torch
from omegaconf import DictConfig, open_dict
from torch import nn

from afl.training.compose import compose_cell
from detectors.heads import normal_init, prior_bias

FIRST_STAGE = "fl"


def wants_second_stage(detector: nn.Module) -> bool:
    """Whether a loss of the detector retrains class layers."""
    return any(loss.class_layers_only for loss in detector.classification.values())


def first_stage(config: DictConfig) -> DictConfig:
    """The run whose features the second stage keeps: the same settings with focal loss."""
    stage = copy.deepcopy(config)
    with open_dict(stage):
        stage.loss = compose_cell(detector=config.cell.detector, loss=FIRST_STAGE, overrides=[]).loss
        stage.cell.loss = FIRST_STAGE
    return stage


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
