"""A loss that is not finite stops the run, with everything needed to look into it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from detectors.contract import Targets


class NonFiniteLoss(RuntimeError):
    """Training stopped before a non-finite gradient reached the weights."""


def check_finite(
    value: Tensor,
    what: str,
    *,
    losses: dict[str, Tensor],
    step: int,
    images: Tensor,
    image_ids: Tensor,
    targets: Targets,
    detector: nn.Module,
    folder: Path,
) -> None:
    """Raise if ``value`` is not finite, after saving the batch and the weights that made it so.

    Args:
        value: scalar that must be finite, and ``what`` it is: the loss, or the norm of the gradient.
        losses: the terms by name.
        step: optimiser step, counted from 0.
        images: (B, 3, H, W) as the detector saw them.
        image_ids: (B,) ids of the data set.
        folder: where ``non_finite_step<N>.pt`` goes.

    Raises:
        NonFiniteLoss: with step, image ids, every term, and the file.
    """
    if bool(torch.isfinite(value)):
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"non_finite_step{step}.pt"
    torch.save(
        {
            "step": step,
            "images": images,
            "image_ids": image_ids,
            "targets": asdict(targets),
            "model": detector.state_dict(),
            "losses": {name: term.detach() for name, term in losses.items()},
        },
        path,
    )
    terms = ", ".join(f"{name} {float(term.detach()):g}" for name, term in losses.items())
    raise NonFiniteLoss(
        f"the {what} is not finite at step {step} ({terms}) on images {image_ids.tolist()}; "
        f"the batch and the weights are in {path}. A lower learning rate, a longer warm-up or "
        "trainer.clip_norm usually help; `prepare_data check` looks for broken boxes."
    )
