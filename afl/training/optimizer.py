"""Builds optimisers: parameter groups, weight decay and learning rate."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Trainable parameters in two groups: matrices and kernels have weight decay, one-dimensional biases and norms have none."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]


def build_optimizer(
    factory: Callable[..., torch.optim.Optimizer], model: nn.Module, weight_decay: float
) -> torch.optim.Optimizer:
    """Call ``factory`` (an optimiser class with its arguments bound) on the model's parameter groups.

    The fused implementation is used if the optimiser has one.
    """
    optimizer = factory(parameter_groups(model, weight_decay))
    undecided = optimizer.defaults.get("fused", False) is None
    if undecided and {p.device.type for p in model.parameters()} <= {"cpu", "cuda"}:
        return factory(parameter_groups(model, weight_decay), fused=True)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, base: list[float], factor: float) -> None:
    """Set each group's learning rate to its base times ``factor``."""
    for group, rate in zip(optimizer.param_groups, base, strict=True):
        group["lr"] = rate * factor
