"""The cost of each loss in a training step compared with focal loss, for one detector with anchors and one with heat maps.

A step goes from decoded images to gradients and the loss's own update. The detectors have the narrow ResNet and the image size of the
embedded benchmark, so the network is as cheap as it gets and the share of the loss as large. Time is that of the process on a CPU,
which other work on the machine does not count towards.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from afl.benchmarks.harness import Row, peak_bytes, take_turns
from afl.benchmarks.training_step import gradient_work
from afl.config import CONF
from afl.training.build import build_detector
from afl.training.compose import compose_cell
from detectors.contract import ClassCounts

DETECTORS = {"retinanet": "anchors", "centernet": "heat maps"}
BATCH, SIZE, CLASSES, REPETITIONS = 16, 96, 30, 9
BASELINE, BUDGET = "fl", 1.5
# Why a loss may cost more than the budget.
REASONS = {
    "ap_loss": "ranks: searches the place of every element among all positives, in time ~ elements x log(positives)"
}


def measure(quick: bool) -> list[Row]:
    """A row for each detector and each loss of ``conf/loss``."""
    losses = ["afl", "ap_loss"] if quick else sorted(path.stem for path in (CONF / "loss").glob("*.yaml"))
    return [row for detector in DETECTORS for row in _rows(detector, losses, quick)]


def _rows(detector: str, losses: list[str], quick: bool) -> list[Row]:
    names = [BASELINE, *(name for name in losses if name != BASELINE)]
    steps = {name: loss_step(detector, name, 2 if quick else BATCH) for name in names}
    seconds = take_turns(steps, 2 if quick else REPETITIONS, clock=time.process_time)
    memory = {name: peak_bytes(step) for name, step in steps.items()}
    return [
        Row.share(
            f"{name} / {BASELINE}, step of {detector} ({DETECTORS[detector]}), CPU",
            seconds[name],
            seconds[BASELINE],
            budget=None if name in REASONS else BUDGET,
            ours_memory=memory[name],
            theirs_memory=memory[BASELINE],
            note=REASONS.get(name, "memory: most tensors alive at once"),
        )
        for name in names[1:]
    ]


def loss_step(detector: str, loss: str, batch: int) -> Callable[[], None]:
    """Forward, losses, backward and the update of the losses' state, on one batch of a long-tailed data set."""
    config = compose_cell(detector=detector, loss=loss, overrides=["dataset=shapes_lvis"])
    counts = torch.logspace(3, 0, CLASSES)
    model: nn.Module = build_detector(config, ClassCounts(counts, counts)).to(
        memory_format=torch.channels_last
    )
    work = gradient_work(model.train(), batch, SIZE, torch.device("cpu"), torch.bfloat16, CLASSES)

    def step() -> None:
        work()
        for own in model.classification.values():
            own.update()

    return step
