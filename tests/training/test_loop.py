"""The training loop compared with the same steps written out: learning rate, accumulation, clipping, and the average of weights."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from afl.losses import MapLoss
from afl.training.distributed import World
from afl.training.gradient_dynamics import GradientDynamics
from afl.training.learner import Learner, moving_average
from afl.training.loop import LoopOptions, Observer, Training, train
from afl.training.optimizer import build_optimizer
from datasets import Sample
from datasets.batch import collate
from tests.losses.cases import make_info

STEPS, RATE, DECAY = 6, 0.2, 0.9


class Counting(MapLoss):
    """Counts its updates."""

    updates = 0

    def compute(self, logits, target, normalizer, localization):
        return logits.sum()

    def update(self) -> None:
        self.updates += 1


class Line(nn.Module):
    """Two terms of a weight, in training mode only: 3 (w m)^2 / 2 and 0.5 (w - 1)^2 / 2, where m is the mean of the images."""

    loss_weights = {"one": 3.0, "other": 0.5}

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0]))
        self.classification = nn.ModuleDict({"map": Counting(make_info([1.0]))})

    def forward(self, images):
        return {"mean": images.mean((1, 2, 3)) * self.weight}

    def losses(self, outputs, targets):
        assert self.training
        return {"one": outputs["mean"].square().mean() / 2, "other": (self.weight - 1).square().sum() / 2}


class Evaluating(Observer):
    """Leaves the detector in evaluation mode, and keeps the learning rates and the gradient norms."""

    def __init__(self, detector: nn.Module) -> None:
        self.detector, self.rates, self.norms = detector, [], []

    def evaluate(self, step: int) -> None:
        self.detector.eval()

    def logged(self, step: int, figures: dict[str, float]) -> None:
        self.rates.append(figures["learning_rate"])
        self.norms.append(figures["gradient_norm"])


def batch(value: int):
    image = np.full((32, 32, 3), value, np.uint8)
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
    return collate([Sample(image, *nothing, 1, (32, 32), np.eye(3)[:2])])


def mean_of(value: int) -> float:
    """Of a grey image, normalised with ImageNet's statistics."""
    return (
        sum(
            (value / 255 - mean) / deviation
            for mean, deviation in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)
        )
        / 3
    )


def schedule(step: int) -> float:
    return 1.0 / (1 + step)


@pytest.mark.parametrize(("accumulate", "clip"), [(1, None), (1, 5.0), (3, None), (3, 5.0)])
def test_every_step_equals_its_formula(tmp_path, accumulate, clip):
    detector = Line()
    optimizer = build_optimizer(partial(torch.optim.SGD, lr=RATE), detector, 0.0)
    learner = Learner(detector.eval(), optimizer, moving_average(detector, DECAY))
    observer = Evaluating(detector)
    values = [40, 90, 140, 190, 240, 70, 20]
    run = Training(
        learner=learner,
        batches=map(batch, itertools.cycle(values)),
        schedule=schedule,
        options=LoopOptions(
            total_steps=STEPS, batch_size=accumulate, accumulate=accumulate, autocast=None, channels_last=False,
            clip_norm=clip, log_every=1, checkpoint_every=0, evaluate_every=2,
        ),
        world=World(0, 1, torch.device("cpu")),
        folder=tmp_path,
        dynamics=GradientDynamics({}, ["f"]),
        observer=observer,
    )  # fmt: skip
    train(run)

    weight, average, stream, norms = 2.0, None, itertools.cycle(values), []
    for step in range(STEPS):
        parts = [mean_of(next(stream)) for _ in range(accumulate)]
        gradient = sum(3.0 * weight * m * m + 0.5 * (weight - 1) for m in parts) / accumulate
        norms.append(abs(gradient))
        if clip is not None and abs(gradient) > clip:
            gradient *= clip / abs(gradient)
        weight -= RATE * schedule(step) * gradient
        average = weight if average is None else DECAY * average + (1 - DECAY) * weight
    assert clip is None or min(norms) < clip < max(norms)
    assert detector.weight.item() == pytest.approx(weight, rel=1e-4)
    assert learner.evaluated.weight.item() == pytest.approx(average, rel=1e-4)
    assert observer.norms == pytest.approx(norms, rel=1e-4)
    assert observer.rates == pytest.approx([RATE * schedule(step) for step in range(STEPS)])
    assert detector.classification["map"].updates == STEPS == learner.step
    saved = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    assert saved["step"] == STEPS and saved["average"]["module.weight"].item() == pytest.approx(
        average, rel=1e-4
    )
