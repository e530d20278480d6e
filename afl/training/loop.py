"""The training loop: one step, top to bottom.

Nothing in here knows which detector, loss or data set is being trained.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from afl.training.checkpoint import save_checkpoint
from afl.training.distributed import World, barrier
from afl.training.gradient_dynamics import GradientDynamics
from afl.training.guard import FiniteGuard, Suspects
from afl.training.interruption import Interruption
from afl.training.optimizer import set_learning_rate
from afl.training.progress import ProgressReport
from afl.training.schedule import Schedule
from detectors.contract import Targets, weighted_sum

# Mean and standard deviation of ImageNet's RGB channels in [0, 255]: what torchvision's weights expect.
PIXEL_MEAN, PIXEL_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class LoopOptions:
    """How to train, apart from what.

    Attributes:
        total_steps: optimiser steps of the whole run.
        batch_size: images per optimiser step, over all processes and accumulated parts.
        accumulate: backward passes per optimiser step.
        autocast: dtype of the network's arithmetic, None for float32; losses are float32 always.
        channels_last: memory format of images and weights.
        clip_norm: largest gradient norm, None for no clipping.
        log_every, checkpoint_every, evaluate_every: in steps; 0 for never (the end always evaluates and saves).
    """

    total_steps: int
    batch_size: int
    accumulate: int
    autocast: torch.dtype | None
    channels_last: bool
    clip_norm: float | None
    log_every: int
    checkpoint_every: int
    evaluate_every: int


@dataclass
class LoopState:
    """What changes while training; with model, optimiser and average, all that a checkpoint holds."""

    step: int = 0
    seconds: float = 0.0


class Batch(Protocol):
    """What the loop needs of a batch."""

    images: Tensor
    boxes: Tensor
    labels: Tensor
    ignored: Tensor
    sizes: Tensor
    image_ids: Tensor
    original_sizes: Tensor
    matrices: Tensor
    extreme_points: Tensor | None
    verified: Tensor | None

    def to(self, device: torch.device, non_blocking: bool = ...) -> Batch: ...


def normalise(images: Tensor, channels_last: bool) -> Tensor:
    """uint8 (B, 3, H, W) to float32 with ImageNet's statistics, in the wanted memory format."""
    mean, std = _pixel_statistics(images.device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return images.float().sub_(mean).div_(std).contiguous(memory_format=layout)


@cache
def _pixel_statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (1, 3, 1, 1); made once, because the host waits for a copy to a device."""
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    return mean, std


def targets_of(batch: Batch) -> Targets:
    """The part of a batch that a detector learns from."""
    return Targets(
        boxes=batch.boxes,
        labels=batch.labels,
        ignored=batch.ignored,
        image_sizes=batch.sizes,
        extreme_points=batch.extreme_points,
        verified=batch.verified,
    )


def train(
    *,
    detector: nn.Module,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    options: LoopOptions,
    world: World,
    state: LoopState,
    run_digest: str,
    about: Mapping[str, Any],
    folder: Path,
    dynamics: GradientDynamics,
    log: Callable[[int, dict[str, float]], None],
    progress: ProgressReport,
    evaluate: Callable[[int], None],
    interruption: Interruption,
    average: AveragedModel | None = None,
    compiled: Callable[[Tensor], dict[str, Tensor]] | None = None,
) -> LoopState:
    """Train from ``state.step`` to ``options.total_steps``.

    Args:
        detector: forward, losses, ``loss_weights`` and ``classification`` of the contract.
        batches: endless, beginning with the batch of ``state.step``; ``options.accumulate`` of them make a step.
        optimizer: over the detector's parameters, its learning rates at their base values.
        schedule: factor on the learning rates by step.
        run_digest: identity of the run, kept in checkpoints.
        about: what rebuilds the detector from a checkpoint alone, see ``afl.training.data.about``; kept in checkpoints.
        folder: the run directory.
        dynamics: watches the losses on the steps that are logged.
        log: called on the main process with step and figures.
        evaluate: called every ``options.evaluate_every`` steps with the step.
        interruption: asked after every step; a checkpoint is saved before it is obeyed.
        average: exponential moving average of the weights, updated after each step.
        compiled: the compiled forward pass, where one is wanted.
    """
    device_type = world.device.type
    base_rates = [group.setdefault("initial_lr", group["lr"]) for group in optimizer.param_groups]
    forward = compiled or detector
    if world.size > 1:
        forward = DistributedDataParallel(
            forward if isinstance(forward, nn.Module) else detector,
            device_ids=[world.device] if device_type == "cuda" else None,
            # Running statistics are each process's own, or summed by whoever keeps them: copying the first process's over
            # the others' would lose what they have seen since their last update.
            broadcast_buffers=False,
        )
    guard = FiniteGuard(detector, optimizer, world.device, folder)
    stream = iter(batches)
    detector.train()
    last_log_time, last_log_step = time.perf_counter(), state.step
    started = last_log_time - state.seconds

    while state.step < options.total_steps:
        step = state.step
        done = step + 1 == options.total_steps
        logged = world.is_main and (done or _is_due(step + 1, options.log_every))

        # ---- learning rate ------------------------------------------------------------------
        set_learning_rate(optimizer, base_rates, schedule(step))
        optimizer.zero_grad(set_to_none=True)

        # ---- gradients, in one part or several ----------------------------------------------
        for part in range(options.accumulate):
            batch = next(stream).to(world.device, non_blocking=True)
            images = normalise(batch.images, options.channels_last)
            targets = targets_of(batch)
            last_part = part == options.accumulate - 1
            keep_local = world.size > 1 and not last_part
            with forward.no_sync() if keep_local else contextlib.nullcontext():
                with torch.autocast(device_type, options.autocast, enabled=options.autocast is not None):
                    outputs = forward(images)
                with dynamics if logged and last_part else contextlib.nullcontext():
                    losses = detector.losses(outputs, targets)
                # The maps are not needed any more, their gradients are there: a gigabyte of memory with many classes.
                del outputs
                total = weighted_sum(losses, detector.loss_weights)
                suspects = Suspects(losses, step, images, batch.image_ids, targets)
                guard.check(total, "loss", suspects)
                (total / options.accumulate).backward()

        # ---- one move of the weights --------------------------------------------------------
        limit = options.clip_norm if options.clip_norm is not None else float("inf")
        gradient_norm = nn.utils.clip_grad_norm_(detector.parameters(), limit)
        guard.check(gradient_norm, "gradient norm", suspects)
        optimizer.step()
        for loss in detector.classification.values():
            loss.update()
        if average is not None:
            average.update_parameters(detector)
        state.step += 1
        state.seconds = time.perf_counter() - started

        # ---- what a person, a table or the next attempt wants to know -----------------------
        evaluated = not done and _is_due(state.step, options.evaluate_every)
        asked = interruption.asked(world)
        saved = done or asked or _is_due(state.step, options.checkpoint_every)
        if logged or evaluated or saved:
            guard.settle()
        if logged:
            now = time.perf_counter()
            speed = (state.step - last_log_step) * options.batch_size / max(now - last_log_time, 1e-9)
            last_log_time, last_log_step = now, state.step
            log(state.step, _figures(losses, total, gradient_norm, optimizer, speed) | dynamics.figures())
            progress.update(state.step, float(total.detach()), speed)
        if evaluated:
            evaluate(state.step)
            detector.train()
        if saved and world.is_main:
            save_checkpoint(
                folder / "checkpoints",
                checkpoint_state(detector, optimizer, average, state, run_digest, about),
            )
        if asked:
            barrier(world)  # no process leaves before the checkpoint is written
            interruption.obey(
                f"saved at step {state.step} of {options.total_steps}; the same command goes on"
            )
    return state


def _is_due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps, 0 for never, happens after this one."""
    return every > 0 and step % every == 0


def _figures(
    losses: dict[str, Tensor],
    total: Tensor,
    gradient_norm: Tensor,
    optimizer: torch.optim.Optimizer,
    images_per_second: float,
) -> dict[str, float]:
    figures = {f"loss/{name}": float(value.detach()) for name, value in losses.items()}
    return figures | {
        "loss/total": float(total.detach()),
        "gradient_norm": float(gradient_norm),
        "learning_rate": optimizer.param_groups[0]["lr"],
        "images_per_second": images_per_second,
    }


def checkpoint_state(
    detector: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
    state: LoopState,
    run_digest: str,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything a resumed run needs, and a user of the weights, as plain tensors, numbers, lists and dicts."""
    return {
        "run": run_digest,
        "about": dict(about),
        "model": detector.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average.state_dict() if average is not None else None,
        "step": state.step,
        "seconds": state.seconds,
        "torch_rng": torch.get_rng_state(),
    }


def restore(
    saved: dict[str, Any],
    detector: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
) -> LoopState:
    """Put model, optimiser, average and random state back; returns the loop's state."""
    detector.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    if average is not None:
        average.load_state_dict(saved["average"])
    torch.set_rng_state(saved["torch_rng"])
    return LoopState(step=saved["step"], seconds=saved["seconds"])


def moving_average(detector: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of weights and buffers with the given decay per step."""
    return AveragedModel(detector, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
