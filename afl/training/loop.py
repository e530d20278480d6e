"""The training loop. It does not depend on the detector, the loss or the data set."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from afl.training.checkpoint import save_checkpoint
from afl.training.distributed import World, barrier
from afl.training.gradient_dynamics import GradientDynamics
from afl.training.guard import FiniteGuard, Suspects
from afl.training.inputs import normalise, targets_of
from afl.training.interruption import Interruption
from afl.training.learner import Learner
from afl.training.optimizer import set_learning_rate
from afl.training.precision import network_precision
from afl.training.schedule import Schedule
from datasets import Batch
from detectors.contract import weighted_sum


@dataclass(frozen=True)
class LoopOptions:
    """Options of the training loop.

    Attributes:
        total_steps: optimiser steps of the whole run.
        batch_size: images per optimiser step, over all processes and accumulated parts.
        accumulate: backward passes per optimiser step.
        autocast: dtype of the network's arithmetic, None for float32; losses are always float32.
        channels_last: memory format of images and weights.
        clip_norm: largest gradient norm, None for no clipping.
        log_every, checkpoint_every, evaluate_every: intervals in steps, 0 for never. A checkpoint is always saved at the end.
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


class Observer:
    """Receives the progress of training. The methods of this class do nothing."""

    def stepped(self, step: int) -> None:
        """Called on every process after every step; must not wait for the device."""

    def logged(self, step: int, figures: dict[str, float]) -> None:
        """Called on the main process every ``log_every`` steps and at the last step, with the figures of the step."""

    def evaluate(self, step: int) -> None:
        """Called on every process every ``evaluate_every`` steps."""

    def stopping(self) -> None:
        """Called when the process is about to end because of a signal; its checkpoint is saved."""


@dataclass(frozen=True)
class Training:
    """Everything that the loop needs to train one run.

    Attributes:
        learner: trained from ``learner.step`` to ``options.total_steps``. Its detector follows ``detectors.contract``; the
            learning rates of its optimiser are at their base values.
        batches: endless, starting at ``learner.step``; each step takes ``options.accumulate`` of them.
        schedule: factor on the learning rates by step.
        folder: the run directory, for checkpoints and the batch of a non-finite loss.
        dynamics: measures the losses on the steps that are logged.
        observer: receives the progress of training.
        interruption: queried after every step; a checkpoint is saved before the process ends.
        kept: stored in each checkpoint with the learner's state: the identity of the run, the description of its detector, and the
            digest of its initial weights.
        compiled: compiled forward pass, None to call the detector itself.
    """

    learner: Learner
    batches: Iterable[Batch]
    schedule: Schedule
    options: LoopOptions
    world: World
    folder: Path
    dynamics: GradientDynamics
    observer: Observer = field(default_factory=Observer)
    interruption: Interruption = field(default_factory=Interruption)
    kept: Mapping[str, Any] = field(default_factory=dict)
    compiled: Callable[[Tensor], dict[str, Tensor]] | None = None


def train(run: Training) -> None:
    """Train ``run.learner`` to the last step.

    Raises:
        NonFiniteLoss: a loss or a gradient is not finite; the weights are unchanged.
        SystemExit: a signal was received, and a checkpoint was saved.
        OSError: a checkpoint or a figure could not be written.
    """
    learner, options, world = run.learner, run.options, run.world
    detector, optimizer = learner.detector, learner.optimizer
    device_type = world.device.type
    base_rates = [group.setdefault("initial_lr", group["lr"]) for group in optimizer.param_groups]
    forward = run.compiled or detector
    if world.size > 1:
        forward = DistributedDataParallel(
            forward if isinstance(forward, nn.Module) else detector,
            device_ids=[world.device] if device_type == "cuda" else None,
            # Running statistics are kept by each process, or summed over all processes by the loss. Copying those of the first
            # process would discard what the other processes have accumulated since their last update.
            broadcast_buffers=False,
        )
    guard = FiniteGuard(detector, optimizer, world.device, run.folder)
    stream = iter(run.batches)
    detector.train()
    last_log_time, last_log_step = time.perf_counter(), learner.step
    started = last_log_time - learner.seconds

    while learner.step < options.total_steps:
        step = learner.step
        done = step + 1 == options.total_steps
        logged = world.is_main and (done or _is_due(step + 1, options.log_every))

        # ---- learning rate ------------------------------------------------------------------
        set_learning_rate(optimizer, base_rates, run.schedule(step))
        optimizer.zero_grad(set_to_none=True)

        # ---- gradients, in one part or several ----------------------------------------------
        for part in range(options.accumulate):
            batch = next(stream).to(world.device, non_blocking=True)
            images = normalise(batch.images, options.channels_last)
            targets = targets_of(batch)
            last_part = part == options.accumulate - 1
            keep_local = world.size > 1 and not last_part
            with forward.no_sync() if keep_local else contextlib.nullcontext():
                with network_precision(device_type, options.autocast):
                    outputs = forward(images)
                with run.dynamics if logged and last_part else contextlib.nullcontext():
                    losses = detector.losses(outputs, targets)
                # The graph keeps the parts of the maps that the backward pass needs; with many classes this frees a gigabyte.
                del outputs
                total = weighted_sum(losses, detector.loss_weights)
                terms = {name: term.detach() for name, term in losses.items()}
                suspects = Suspects(terms, step, images, batch.image_ids, targets)
                guard.check(total, "loss", suspects)
                (total / options.accumulate).backward()

        # ---- one update of the weights ------------------------------------------------------
        limit = options.clip_norm if options.clip_norm is not None else float("inf")
        gradient_norm = nn.utils.clip_grad_norm_(detector.parameters(), limit)
        guard.check(gradient_norm, "gradient norm", suspects)
        optimizer.step()
        for loss in detector.classification.values():
            loss.update()
        if learner.average is not None:
            learner.average.update_parameters(detector)
        learner.step += 1
        learner.seconds = time.perf_counter() - started
        run.observer.stepped(learner.step)

        # ---- figures, evaluation, checkpoint ------------------------------------------------
        evaluated = not done and _is_due(learner.step, options.evaluate_every)
        asked = run.interruption.asked(world)
        saved = done or asked or _is_due(learner.step, options.checkpoint_every)
        if logged or evaluated or saved:
            guard.settle()
        if logged:
            now = time.perf_counter()
            speed = (learner.step - last_log_step) * options.batch_size / max(now - last_log_time, 1e-9)
            last_log_time, last_log_step = now, learner.step
            figures = _figures(losses, total, gradient_norm, optimizer, speed)
            run.observer.logged(learner.step, figures | run.dynamics.figures())
        if evaluated:
            run.observer.evaluate(learner.step)
            detector.train()
        if saved and world.is_main:
            save_checkpoint(run.folder / "checkpoints", {**run.kept, **learner.state()})
        if asked:
            barrier(world)  # no process ends before the checkpoint is written
            run.observer.stopping()
            run.interruption.obey(
                f"saved at step {learner.step} of {options.total_steps}; the same command continues from there"
            )


def _is_due(step: int, every: int) -> bool:
    """Whether an action with the interval ``every`` (0 for never) is due after ``step`` steps."""
    return every > 0 and step % every == 0


def _figures(
    losses: dict[str, Tensor],
    total: Tensor,
    gradient_norm: Tensor,
    optimizer: torch.optim.Optimizer,
    images_per_second: float,
) -> dict[str, float]:
    on_device = {f"loss/{name}": value for name, value in losses.items()}
    on_device |= {"loss/total": total, "gradient_norm": gradient_norm}
    # One transfer for all of them.
    numbers = torch.stack([value.detach().double() for value in on_device.values()]).tolist()
    return dict(zip(on_device, numbers, strict=True)) | {
        "learning_rate": optimizer.param_groups[0]["lr"],
        "images_per_second": images_per_second,
    }
