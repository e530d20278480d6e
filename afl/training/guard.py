"""A loss that is not finite stops the run, with everything needed to look into it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from detectors.contract import Targets


class NonFiniteLoss(RuntimeError):
    """Training stopped before a non-finite gradient reached the weights."""


def check_finite(
    losses: dict[str, Tensor],
    total: Tensor,
    *,
    step: int,
    images: Tensor,
    image_ids: Tensor,
    targets: Targets,
    model_state: dict[str, Tensor],
    folder: Path,
) -> None:
    """Raise if ``total`` is not finite, after saving the batch and the weights that made it so.

    Args:
        losses: the terms by name.
        total: their weighted sum.
        step: optimiser step, counted from 0.
        images: (B, 3, H, W) as the detector saw them.
        image_ids: (B,) ids of the data set.
        folder: where ``non_finite_step<N>.pt`` goes.

    Raises:
        NonFiniteLoss: with step, image ids, every term, and the file.
    """
    if bool(torch.isfinite(total)):
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"non_finite_step{step}.pt"
    torch.save(
        {
            "step": step,
            "images": images,
            "image_ids": image_ids,
            "targets": asdict(targets),
            "model": model_state,
            "losses": {name: value.detach() for name, value in losses.items()},
        },
        path,
    )
    terms = ", ".join(f"{name} {float(value.detach()):g}" for name, value in losses.items())
    raise NonFiniteLoss(
        f"the loss is not finite at step {step} ({terms}) on images {image_ids.tolist()}; "
        f"the batch and the weights are in {path}. A lower learning rate, a longer warm-up or "
        "trainer.clip_norm usually help; `prepare_data check` looks for broken boxes."
    )
