"""How hard a loss would push each frequency group of a trained detector, without training: the screen of a new loss.

The network's outputs do not depend on the loss. A run's outputs on some training batches are computed once, and every loss
takes its gradient at the same logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

import torch
from torch import nn

from afl.training.data import RunData, training_batches
from afl.training.distributed import World
from afl.training.gradient_dynamics import GradientDynamics
from afl.training.inputs import normalise, targets_of
from afl.training.load import LoadedRun

SETTLING_ROUNDS = 10


def positive_gradients(
    run: LoadedRun, detectors: Mapping[str, nn.Module], *, batches: int
) -> dict[str, dict[str, float]]:
    """Sum of |dL/dz| over the positives of each frequency group, all classification maps together.

    Running statistics of a loss, such as AFL's mean of g, are settled first: they see every batch ``SETTLING_ROUNDS`` times.

    Args:
        run: trained; its outputs are used.
        detectors: by name of their loss, the same detector built with that loss; of their weights none are used.
        batches: of the run's training images, augmented as in training.

    Returns:
        By loss, by group ("r", "c", "f").
    """
    seen = []
    with torch.no_grad():
        stream = iter(training_batches(run.config, run.data, World(0, 1, torch.device("cpu")), run.step))
        for batch in islice(stream, batches):
            outputs = run.detector(normalise(batch.images, run.config.trainer.channels_last))
            seen.append((outputs, targets_of(batch)))
    return {name: _sums(detector, run.data, seen) for name, detector in detectors.items()}


def _sums(detector: nn.Module, data: RunData, seen: Sequence) -> dict[str, float]:
    detector.train()
    with torch.no_grad():
        for outputs, targets in list(seen) * SETTLING_ROUNDS:
            detector.losses(outputs, targets)
            for loss in detector.classification.values():
                loss.update()
    dynamics = GradientDynamics(detector.classification, data.statistics.groups)
    sums = dict.fromkeys(sorted(set(data.statistics.groups)), 0.0)
    for outputs, targets in seen:
        with dynamics:
            detector.losses(_differentiable(outputs), targets)
        figures = dynamics.figures()
        for group in sums:
            sums[group] += sum(
                value for name, value in figures.items() if name.endswith(f"/positive/{group}/sum")
            )
    return sums


def _differentiable(outputs):
    """A copy of nested outputs whose tensors require gradients."""
    if isinstance(outputs, torch.Tensor):
        return outputs.detach().clone().requires_grad_(outputs.is_floating_point())
    if isinstance(outputs, Mapping):
        return {name: _differentiable(value) for name, value in outputs.items()}
    return type(outputs)(_differentiable(value) for value in outputs)
