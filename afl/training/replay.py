"""Replays the batch that stopped a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from afl.training.checkpoint import UNREADABLE, CheckpointError, read_archive, reason
from afl.training.precision import network_precision
from detectors.contract import Targets, weighted_sum

PARTS = ("step", "images", "image_ids", "targets", "model")


@dataclass(frozen=True)
class Replay:
    """Results of a saved batch.

    Attributes:
        step: optimiser step, counted from 0.
        image_ids: ids of the data set.
        outputs: the detector's maps by name.
        losses: the terms by name, and ``total``, their weighted sum.
        gradients: of the weighted sum, by name of the parameter.
    """

    step: int
    image_ids: list[int]
    outputs: dict[str, Tensor]
    losses: dict[str, Tensor]
    gradients: dict[str, Tensor]


def replay(detector: nn.Module, path: Path, autocast: torch.dtype | None) -> Replay:
    """Run the forward and backward pass of the batch in ``path`` with the weights in that file, on the CPU.

    Args:
        detector: built from the run's config; its weights are replaced.
        path: written by ``guard.FiniteGuard``.
        autocast: dtype of the network's arithmetic, None for float32.

    Raises:
        CheckpointError: the file is not a saved batch, is damaged, or belongs to another detector.
    """
    try:
        saved = read_archive(path)
        step, images, image_ids, targets, model = (saved[name] for name in PARTS)
        detector.load_state_dict(model)
        targets, ids = Targets(**targets), [int(image_id) for image_id in image_ids]
        if images.ndim != 4 or len(images) != len(ids):
            raise TypeError("the images are not a batch")
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except UNREADABLE as error:
        raise CheckpointError(f"{path} is not the saved batch of this run ({reason(error)})") from error
    detector.train()
    with network_precision("cpu", autocast):
        outputs = detector(images)
    losses = detector.losses(outputs, targets)
    total = weighted_sum(losses, detector.loss_weights)
    total.backward()
    return Replay(
        step=step,
        image_ids=ids,
        outputs={name: value.detach() for name, value in _tensors(outputs, "").items()},
        losses={name: value.detach() for name, value in losses.items()} | {"total": total.detach()},
        gradients={name: p.grad for name, p in detector.named_parameters() if p.grad is not None},
    )


def _tensors(value: object, name: str) -> dict[str, Tensor]:
    """All tensors of nested dicts and lists, by dotted name."""
    if isinstance(value, Tensor):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found: dict[str, Tensor] = {}
    for key, one in items:
        found |= _tensors(one, f"{name}.{key}" if name else str(key))
    return found
