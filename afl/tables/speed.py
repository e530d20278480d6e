"""The training speed of a run, from the best available source.

The sources, best first: finished runs of the same network at the same size on this device; a short measurement on this device with
random data; finished runs on another device; steps that this project has measured on a GPU, scaled by multiply-adds; RetinaNet's
published speed, scaled by multiply-adds.
"""

from __future__ import annotations

import json
import logging
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from afl.tracking import FINISHED, Record, environment
from afl.training.cost import measure_throughput

# RetinaNet R50-FPN on COCO: 0.205 s for a step of 16 images on 8 V100 (detectron2's model zoo).
PUBLISHED_SPEED, PUBLISHED_DEVICE = 16 / 0.205 / 8, "V100"
PUBLISHED_PIXELS = 800 * 1088  # of its images, as training_size gives them
# Multiply-adds of the forward pass of ``experiment=coco/DETECTOR`` for an image of this size, by ``network_cost``.
MACS = {"retinanet": 202_780_325_888, "fcos": 173_832_994_304}
REFERENCE = "retinanet"  # its speed is used for detectors that were not measured
LEAST_STEPS = 50  # shorter runs are too slow at first to give a speed
SMALL_MACS = 1e12 / (
    3 * 16 * 8
)  # of a network that a CPU measures in seconds: 8 steps of 16 images, forward and backward
# The names of rows of afl.benchmarks.gpu.
STEP = re.compile(r"step, (\w+), bf16 \w+ against \w+, (\d+) x (\d+) px, 80 classes, ResNet-50")
PUBLISHED = "published, scaled"
SCALED = ("measured steps, scaled", f"estimated from {REFERENCE}'s steps")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Speed:
    """Training images per second of one process on one device, and the source of this number."""

    images_per_second: float
    device: str
    source: str
    eval_seconds: float | None = None


@dataclass(frozen=True)
class GpuStep:
    """A measured training step with ResNet-50.

    Attributes:
        images_per_second: of the step, without reading images.
        size: side of the square images in pixels.
        device: name of the GPU.
    """

    images_per_second: float
    size: int
    device: str


def gpu_steps(path: Path) -> dict[str, GpuStep]:
    """The fastest measured step of each detector of ``MACS`` in ``results/benchmark/gpu.json``; empty without that file."""
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    found: dict[str, GpuStep] = {}
    for row in content["rows"]:
        match = STEP.fullmatch(row["what"])
        if match and match[1] in MACS and row["ours"]:
            step = GpuStep(int(match[2]) / row["ours"], int(match[3]), content["machine"]["gpu"])
            best = found.get(match[1], step)
            found[match[1]] = max(step, best, key=lambda one: one.images_per_second)
    return found


class Speeds:
    """Estimates the speed of runs.

    Args:
        records: of any runs.
        measure: ``auto``, ``true`` or ``false``.
        steps: measured on a GPU, by detector.
    """

    def __init__(self, records: Sequence[Record], measure: str, steps: Mapping[str, GpuStep]) -> None:
        self._records: dict[tuple, list[Record]] = {}
        for record in records:
            if record.status == FINISHED and record.images_per_second and (record.steps or 0) >= LEAST_STEPS:
                self._records.setdefault(_work(record.config), []).append(record)
        self._measure, self._steps = measure, steps

    @cached_property
    def here(self) -> str:
        """Name of the device that runs would use."""
        return this_device()

    def of(self, cell: DictConfig, losses: Sequence[str], num_classes: int, macs: int) -> list[Speed]:
        """The speed of a network with each of its losses, from the best available source.

        Args:
            cell: one of its runs.
            macs: multiply-adds of its forward pass for one image.
        """
        alike = self._records.get(_work(cell), [])
        at_home = [record for record in alike if record.environment.get("device") == self.here]
        quick = torch.cuda.is_available() or macs < SMALL_MACS
        if not at_home and (self._measure == "true" or (self._measure == "auto" and quick)):
            return [_measured(cell, num_classes, quick)] * len(losses)
        if alike:
            return [_from_records(at_home or alike, loss) for loss in losses]
        return [self._scaled(cell.cell.detector, macs)] * len(losses)

    def _scaled(self, detector: str, macs: int) -> Speed:
        """From a measured step of the detector, from one of RetinaNet, or from RetinaNet's published speed."""
        measured = detector if detector in self._steps else REFERENCE
        if step := self._steps.get(measured):
            there = MACS[measured] * step.size**2 / PUBLISHED_PIXELS
            return Speed(step.images_per_second * there / macs, step.device, SCALED[measured != detector])
        return Speed(PUBLISHED_SPEED * MACS[REFERENCE] / macs, PUBLISHED_DEVICE, PUBLISHED)

    def notes(self, sources: Sequence[str]) -> list[str]:
        """The notes of a plan about speeds that were scaled."""
        known = [source for source in sources if source in (PUBLISHED, *SCALED)]
        if not known:
            return []
        instead = "scaled by multiply-adds; measure=true measures some steps on this machine instead"
        if PUBLISHED in known:
            return [
                f"published: RetinaNet R50-FPN, {PUBLISHED_SPEED:.1f} images/s on one {PUBLISHED_DEVICE} (detectron2's model zoo), "
                + instead
            ]
        said = ", ".join(
            f"{name} {step.images_per_second:.0f} images/s of {step.size} px on one {step.device}"
            for name, step in self._steps.items()
        )
        return [f"measured steps: {said}, without reading images (results/benchmark), {instead}"]


def this_device() -> str:
    """Name of the device that runs on this machine would use."""
    return environment("cuda" if torch.cuda.is_available() else "cpu")["device"]


def _measured(cell: DictConfig, num_classes: int, quick: bool) -> Speed:
    log.info("measuring %s on random data", cell.cell.detector)
    batch_size, steps = (cell.trainer.batch_size, 4) if quick else (1, 1)
    while True:
        try:
            found = measure_throughput(cell, num_classes, batch_size=batch_size, steps=steps)
            break
        except torch.cuda.OutOfMemoryError:
            if batch_size == 1:
                raise
            batch_size //= 2
    height, width = found.size
    return Speed(
        images_per_second=found.images_per_second,
        device=found.device,
        source=f"measured now with {cell.cell.loss}: {found.steps} steps of {found.batch_size} random images, "
        f"{width} x {height}",
    )


def _from_records(records: Sequence[Record], loss: str) -> Speed:
    device = str(records[-1].environment.get("device"))
    records = [record for record in records if record.environment.get("device") == device]
    own = [record for record in records if record.loss == loss]
    chosen = own or records
    count = f"{len(chosen)} finished run{'s' if len(chosen) > 1 else ''}"
    return Speed(
        images_per_second=statistics.median(_known(record.images_per_second for record in chosen)),
        device=device,
        source=f"measured: {count}" + ("" if own else " with other losses"),
        eval_seconds=statistics.median(_known(record.eval_seconds for record in chosen)),
    )


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def sources(speeds: Sequence[Speed]) -> str:
    """The sources of the speeds in a row; finished runs are counted together."""
    runs = [
        int(found[1])
        for speed in speeds
        if (found := re.fullmatch(r"measured: (\d+) finished runs?", speed.source))
    ]
    if len(runs) < 2 or len(runs) < len(speeds):
        return "; ".join(dict.fromkeys(speed.source for speed in speeds))
    return f"measured: {sum(runs)} finished runs"


def _work(config: DictConfig | dict) -> tuple:
    """The settings that determine the speed of a run, apart from the loss: network, images, precision."""
    cell, dataset, trainer = config["cell"], config["dataset"], config["trainer"]
    return (
        cell["detector"], _text(config["backbone"]), _text(config["pyramid"]), dataset["name"],
        _text(dataset["train_transform"][config["family"]]), trainer["precision"], trainer["batch_size"], trainer["threads"],
    )  # fmt: skip


def _text(part: DictConfig | dict) -> str:
    """A part of a config with its interpolations resolved; resolving the whole config is a hundred times slower."""
    return str(OmegaConf.to_container(part, resolve=True) if isinstance(part, DictConfig) else part)
