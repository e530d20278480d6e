"""Estimates the cost of a run before it starts: multiply-adds, images per second, and the size of a checkpoint.

Multiply-adds and bytes are counted on PyTorch's ``meta`` device, without weights or data. The speed is measured with the real
loop (``loop.train``) on random images and boxes of the run's size.
"""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig, open_dict
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from afl.tracking import environment
from afl.training.build import bound, build_detector, loop_options
from afl.training.distributed import World
from afl.training.gradient_dynamics import GradientDynamics
from afl.training.learner import Learner
from afl.training.loop import Observer, Training, train
from afl.training.optimizer import build_optimizer
from datasets.batch import Batch
from detectors.backbone import FrozenBatchNorm
from detectors.boxes import middles_of_sides
from detectors.contract import ClassCounts

DIVISOR = 32  # sides of batches
ASPECT = 4 / 3  # of random images, unless the transform crops them to a square
OBJECTS = 7  # in each random image, as in MS COCO


@dataclass(frozen=True)
class Throughput:
    """Measured training speed.

    Attributes:
        images_per_second: over the timed steps.
        batch_size: images per step.
        steps: number of timed steps.
        size: (height, width) of the images.
        device: name of the processor or GPU.
    """

    images_per_second: float
    batch_size: int
    steps: int
    size: tuple[int, int]
    device: str


def training_size(config: DictConfig) -> tuple[int, int]:
    """(height, width) of a training batch in pixels: the largest output of the detector family's transform for a 4 : 3 image,
    padded to a multiple of 32."""
    transform = config.dataset.train_transform[config.family]
    if "size" in transform:
        height = width = transform.size
    elif "short_sides" in transform:
        height = max(transform.short_sides)
        width = min(transform.max_long_side, height * ASPECT)
    else:
        height = width = config.dataset.image_size
    return tuple(math.ceil(side / DIVISOR) * DIVISOR for side in (height, width))


def without_download(config: DictConfig) -> DictConfig:
    """The same run with random instead of downloaded backbone weights: the same work, without a download."""
    config = copy.deepcopy(config)
    if config.backbone.get("pretrained"):
        with open_dict(config):
            config.backbone.pretrained = False
    return config


# Layers that keep the shape and contain no products to count.
WITHOUT_PRODUCTS = (nn.BatchNorm2d, nn.GroupNorm, nn.ReLU, FrozenBatchNorm)


def skeleton(config: DictConfig, num_classes: int) -> nn.Module:
    """The run's network on the ``meta`` device, whose tensors have shapes but no values. Its loss is focal loss, because that
    constructor reads no values."""
    config = without_download(config)
    with open_dict(config):
        config.loss = {"_target_": "afl.losses.ClassificationLoss", "_partial_": True, "chain": {}}
    with torch.device("meta"):
        return build_detector(config, _even_counts(num_classes))


@dataclass(frozen=True)
class NetworkCost:
    """The cost of a run's network.

    Attributes:
        forward_macs: multiply-adds of the forward pass of one image by PyTorch's counter: convolutions and matrix products only.
        checkpoint_bytes: size of the weights, the optimiser's state, and the averaged weights if the run keeps them, in float32.
    """

    forward_macs: int
    checkpoint_bytes: int


def network_cost(config: DictConfig, num_classes: int) -> NetworkCost:
    """Compute the cost of a run's network from its shapes."""
    detector = skeleton(config, num_classes)
    trained = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    kept = sum(value.numel() for value in detector.state_dict().values())
    moments = 2 if config.optimizer.factory.betas is not None else 1
    for module in detector.modules():
        if isinstance(module, WITHOUT_PRODUCTS):  # skipping them saves time, even on the meta device
            module.forward = lambda x: x  # type: ignore[method-assign]  # keep the module: a folded norm reads its tensors
    with torch.device("meta"):
        images = torch.empty(1, 3, *training_size(config))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        detector.eval()(images)
    return NetworkCost(
        forward_macs=counter.get_total_flops() // 2,
        checkpoint_bytes=4 * (kept * (2 if config.trainer.ema else 1) + trained * moments),
    )


def measure_throughput(
    config: DictConfig, num_classes: int, *, batch_size: int | None = None, steps: int = 8
) -> Throughput:
    """Time ``steps`` steps of the training loop on random data, after as many warm-up steps.

    Nothing is downloaded, and no file is left behind.

    Args:
        config: of the run.
        num_classes: of its data set.
        batch_size: images per step; None for the run's setting.
    """
    config = without_download(config)
    with open_dict(config):
        config.trainer.batch_size = batch_size or config.trainer.batch_size
        config.trainer.accumulate = 1 if batch_size else config.trainer.accumulate
        config.trainer.max_duration, config.trainer.log_every = f"{2 * steps}steps", f"{steps}steps"
        config.trainer.checkpoint_every = config.trainer.evaluate_every = None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.trainer.device not in ("auto", device.type):
        device = torch.device(config.trainer.device)
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    options = loop_options(config, num_images=1, world_size=1)
    detector = build_detector(config, _even_counts(num_classes))
    detector.to(
        device, memory_format=torch.channels_last if options.channels_last else torch.contiguous_format
    )
    optimizer = build_optimizer(bound(config.optimizer.factory), detector, config.optimizer.weight_decay)
    times = _Times()
    with tempfile.TemporaryDirectory() as folder:
        train(
            Training(
                learner=Learner(detector, optimizer),
                batches=random_batches(config, num_classes),
                schedule=lambda step: 1e-6,  # such a small learning rate keeps the weights finite
                options=options,
                world=World(rank=0, size=1, device=device),
                folder=Path(folder),
                dynamics=GradientDynamics({}, ["f"] * num_classes),
                observer=times,
            )
        )
    seconds = times.at[2 * steps] - times.at[steps]
    return Throughput(
        images_per_second=steps * options.batch_size / seconds,
        batch_size=options.batch_size,
        steps=steps,
        size=training_size(config),
        device=environment(str(device))["device"],
    )


class _Times(Observer):
    """Records the time at which each step is logged."""

    def __init__(self) -> None:
        self.at: dict[int, float] = {}

    def logged(self, step: int, figures: dict[str, float]) -> None:
        self.at[step] = time.perf_counter()


def random_batches(config: DictConfig, num_classes: int) -> Iterator[Batch]:
    """Yield the same batch of noise images with boxes of all sizes, endlessly."""
    generator = torch.Generator().manual_seed(0)
    height, width = training_size(config)
    count = config.trainer.batch_size // config.trainer.accumulate
    size = torch.tensor([width, height], dtype=torch.float32)
    centers = torch.rand(count, OBJECTS, 2, generator=generator) * size
    halves = (0.02 + 0.3 * torch.rand(count, OBJECTS, 2, generator=generator) ** 2) * size
    boxes = torch.cat([(centers - halves).clamp(min=0), torch.minimum(centers + halves, size)], -1)
    sizes = torch.tensor([[height, width]]).repeat(count, 1)
    batch = Batch(
        images=torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator),
        boxes=boxes,
        labels=torch.randint(num_classes, (count, OBJECTS), generator=generator),
        ignored=torch.zeros(count, OBJECTS, dtype=torch.bool),
        sizes=sizes,
        image_ids=torch.arange(count),
        original_sizes=sizes,
        matrices=torch.eye(2, 3).repeat(count, 1, 1),
        extreme_points=middles_of_sides(boxes) if config.needs_extreme_points else None,
        verified=torch.ones(count, num_classes, dtype=torch.bool) if config.dataset.federated else None,
    )
    while True:
        yield batch


def _even_counts(num_classes: int) -> ClassCounts:
    return ClassCounts(instances=torch.full((num_classes,), 100.0), images=torch.full((num_classes,), 100.0))
