"""The state that training changes, and its form in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


@dataclass
class Learner:
    """A detector in training.

    Attributes:
        detector: includes the state of its losses.
        optimizer: of the detector's parameters.
        average: moving average of the detector's weights, or None.
        step: number of completed optimiser steps.
        seconds: wall time of these steps, over all attempts of an interrupted run.
    """

    detector: nn.Module
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None = None
    step: int = 0
    seconds: float = 0.0

    @property
    def evaluated(self) -> nn.Module:
        """The detector that is evaluated: the moving average, if there is one."""
        return self.detector if self.average is None else self.average.module

    def state(self) -> dict[str, Any]:
        """The part of a checkpoint that training continues from: plain tensors, numbers, lists and dictionaries."""
        return {
            "model": self.detector.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "step": self.step,
            "seconds": self.seconds,
            "torch_rng": torch.get_rng_state(),
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Restore everything that ``state`` returned, including torch's random state."""
        self.detector.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(saved["average"])
        torch.set_rng_state(saved["torch_rng"])
        self.step, self.seconds = saved["step"], saved["seconds"]


def moving_average(detector: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of weights and buffers with the given decay per step."""
    return AveragedModel(detector, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
