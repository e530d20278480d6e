"""Applies the requests of losses to a detector: initial biases, score threshold, and calibration for evaluation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from afl.losses import ElementCounter
from afl.training.distributed import World
from afl.training.inputs import normalise, targets_of
from datasets import Batch
from detectors.heads import prior_bias

BATCHES = 20
log = logging.getLogger(__name__)


@torch.no_grad()
def initialise_priors(
    detector: nn.Module,
    batches: Iterable[Batch],
    world: World,
    *,
    channels_last: bool,
    loaded: Sequence[nn.Module] = (),
) -> None:
    """Count positives and elements, compute each loss's prior from the counts, and set the biases of its last layers.

    The counts come from the first ``BATCHES`` batches. Detectors whose losses do not choose a prior are not changed.

    Args:
        loaded: class layers that start from trained weights, whose biases stay.
    """
    wanting = [name for name, loss in detector.classification.items() if loss.wants_prior]
    if not wanting:
        return
    losses = dict(detector.classification)
    counters = {
        name: ElementCounter(loss.info, loss.prepared).to(world.device) for name, loss in losses.items()
    }
    was_training = detector.training
    detector.eval()  # counting must not change running statistics
    try:
        detector.classification.update(counters)
        for batch in islice(batches, BATCHES):
            batch = batch.to(world.device)
            detector.losses(detector(normalise(batch.images, channels_last)), targets_of(batch))
    finally:
        detector.classification.update(losses)
        detector.train(was_training)
    for name in wanting:
        prior = losses[name].prior_from_data(*counters[name].per_image())
        kept = {id(layer) for layer in loaded}
        fresh = [layer for layer in detector.class_layers()[name] if id(layer) not in kept]
        for layer in fresh:
            layer.bias.fill_(prior_bias(prior))
        if world.is_main and fresh:
            log.info("%s: the head starts at a probability of %.2g, chosen by its loss", name, prior)


@torch.no_grad()
def calibrate(detector: nn.Module) -> list[RemovableHandle]:
    """Calibrate the class layers for evaluation, in place; do not train or calibrate the detector afterwards.

    Returns:
        Handles of the hooks that change the layers' logits; to undo the calibration, remove them and restore the layers.
    """
    hooks = []
    for name, loss in detector.classification.items():
        change = loss.rescoring
        for layer in detector.class_layers()[name]:
            weight, bias = loss.calibrated(layer.weight, layer.bias)
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
            if change is not None:
                hooks.append(layer.register_forward_hook(partial(_rescored, change)))
    return hooks


def _rescored(change: Callable[[Tensor], Tensor], layer: nn.Module, inputs: object, logits: Tensor) -> Tensor:
    return change(logits)


def adapt_threshold(detector: nn.Module) -> None:
    """Lower the detector's score threshold to the threshold of its loss, if both have one."""
    for loss in detector.classification.values():
        threshold = loss.score_threshold
        if threshold is not None and hasattr(detector, "score_threshold"):
            detector.score_threshold = min(detector.score_threshold, threshold)
