"""Screens a new loss without training: measures its gradient on each frequency group of a trained detector.

The network's outputs do not depend on the loss. The outputs of a trained run on some training batches are computed once, and
the gradient of every loss is taken at the same logits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import islice

import torch
from torch import nn

from afl.training.data import RunData, training_batches
from afl.training.distributed import World
from afl.training.gradient_dynamics import GradientDynamics
from afl.training.inputs import normalise, targets_of
from afl.training.load import LoadedRun
from detectors.contract import weighted_sum

# After so many updates a running mean with momentum 0.99 has kept 0.7 % of its start, and class weights have faded in.
SETTLING_UPDATES = 500


def positive_gradients(
    run: LoadedRun, detectors: Mapping[str, nn.Module], *, batches: int
) -> dict[str, dict[str, float]]:
    """Sum of |dL/dz| over the positives of each frequency group and over all classification maps.

    Running statistics of a loss, such as AFL's mean of g, settle first: the batches are repeated for at least ``SETTLING_UPDATES``
    updates.

    Args:
        run: a trained run, whose outputs are used.
        detectors: by name of a loss, the run's detector built with that loss; their weights are not used.
        batches: number of batches of the run's training images, augmented as in training.

    Returns:
        The sums by loss and by group ("r", "c", "f").
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
        for outputs, targets in list(seen) * math.ceil(SETTLING_UPDATES / max(1, len(seen))):
            detector.losses(outputs, targets)
            for loss in detector.classification.values():
                loss.update()
    dynamics = GradientDynamics(detector.classification, data.statistics.groups)
    sums = dict.fromkeys(sorted(set(data.statistics.groups)), 0.0)
    for outputs, targets in seen:
        with dynamics:
            losses = detector.losses(_differentiable(outputs), targets)
        weighted_sum(losses, detector.loss_weights).backward()
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
