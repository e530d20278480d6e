"""Evaluates a run's detector: detects in the validation images, writes the detections, and computes the data set's metrics."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from afl.config import read_config
from afl.evaluation.evaluator import BACKENDS
from afl.tracking import Picture
from afl.training.build import loop_options
from afl.training.data import RunData, build_evaluator, evaluation_batches, evaluation_samples, read_data
from afl.training.detect import TestTime, detect
from afl.training.diagnostics import write_diagnostics
from afl.training.distributed import World, barrier, join_world, share_buffers
from afl.training.folds import DETECTIONS, kept_detections
from afl.training.interruption import Interruption
from afl.training.load import LoadedRun
from afl.training.loop import LoopOptions
from afl.training.pictures import picture_of
from afl.training.prior import adapt_threshold, calibrate
from datasets.files import write_bytes


@dataclass(frozen=True)
class Evaluation:
    """Evaluates a detector on the validation images of ``data``.

    Attributes:
        config: of the run.
        folder: where the file ``detections`` and the diagnostics are written.
        test_time: views of every image, from the config.
    """

    config: DictConfig
    data: RunData
    world: World
    folder: Path
    options: LoopOptions
    detections: str = DETECTIONS
    test_time: TestTime = field(init=False)

    def __post_init__(self) -> None:
        test_time = TestTime(**OmegaConf.to_container(self.config.trainer.test_time))
        object.__setattr__(self, "test_time", test_time)

    def check(self) -> None:
        """Find errors that would otherwise stop the run after training: ground truth that the evaluator rejects, or a first
        image that cannot be read or resized."""
        build_evaluator(self.config, self.data)
        if len(self.data.val):
            evaluation_samples(self.config, self.data)[0, 0]

    def __call__(
        self, detector: nn.Module, interruption: Interruption | None = None
    ) -> tuple[dict[str, Any], list[Picture]]:
        """Detect, write the detections, and compute the metrics.

        Every process detects in its share of the images and writes its detections to a file. The first process evaluates
        all of them.

        Args:
            interruption: obeyed between images; None to ignore signals.

        Returns:
            The evaluator's figures (only an empty ``per_class`` except on the first process), and the first images with
            their boxes.
        """
        adapt_threshold(detector)
        share_buffers(detector, self.world)
        with evaluated(detector, self.config.trainer.get("fixed_detections")):
            return self._measured(detector, interruption)

    def _measured(
        self, detector: nn.Module, interruption: Interruption | None
    ) -> tuple[dict[str, Any], list[Picture]]:
        evaluator = build_evaluator(self.config, self.data)
        number = {int(image_id): i for i, image_id in enumerate(self.data.val.image_ids)}
        pictures: list[Picture] = []
        found = detect(
            detector,
            evaluation_batches(self.config, self.data, self.world),
            device=self.world.device,
            autocast=self.options.autocast,
            channels_last=self.options.channels_last,
            test_time=self.test_time,
        )
        for batch, boxes in found:
            if interruption is not None and self.world.size == 1:
                interruption.leave_if_asked(self.world)
            image_ids = batch.image_ids.tolist()
            evaluator.process(image_ids, boxes)
            for image_id, one in zip(image_ids, boxes, strict=True):
                if self.world.is_main and len(pictures) < self.config.trainer.pictures:
                    pictures.append(picture_of(self.data.val, number[image_id], one))
        if self.world.size > 1:
            # Once and not per batch, because the number of batches differs between processes.
            if interruption is not None:
                interruption.leave_if_asked(self.world)
            parts = [self.folder / f"detections-{rank}.npz" for rank in range(self.world.size)]
            evaluator.save(parts[self.world.rank])
            barrier(self.world)
            if self.world.is_main:
                evaluator.merge(parts)
                for part in parts:
                    part.unlink()
        metrics: dict[str, Any] = {"per_class": {}}
        if self.world.is_main:
            write_bytes(self.folder / self.detections, evaluator.detections_json())
            metrics = evaluator.evaluate()
            write_diagnostics(self.folder / self.detections.replace("detections", "diagnostics"), evaluator)
        barrier(self.world)
        return metrics, pictures


@contextlib.contextmanager
def evaluated(detector: nn.Module, fixed_detections: int | None) -> Iterator[None]:
    """Change the detector for evaluation, and restore it afterwards: its class layers are calibrated by their losses, and it
    returns at least ``fixed_detections`` detections per image, if that is given."""
    limit: int = vars(detector)["max_detections"]
    layers = detector.class_layers()
    own = {name: [copy.deepcopy(layer.state_dict()) for layer in layers[name]] for name in layers}
    vars(detector)["max_detections"] = max(limit, fixed_detections or 0)
    hooks = []
    try:
        hooks = calibrate(detector)
        yield
    finally:
        for hook in hooks:
            hook.remove()
        vars(detector)["max_detections"] = limit
        for name, states in own.items():
            for layer, state in zip(layers[name], states, strict=True):
                layer.load_state_dict(state)


def evaluate_run(
    run: LoadedRun, folder: Path, detections: str = DETECTIONS, *, on_training_images: bool = False
) -> dict[str, Any]:
    """Evaluate a trained run again, on the device of its config and in all processes that torchrun started.

    The caller must call ``leave_world`` at the end.

    Args:
        folder: where the file ``detections`` is written.
        on_training_images: evaluate on the training images, without augmentation, instead of the validation images.

    Returns:
        The evaluator's figures on the first process, an empty dictionary on the others.
    """
    world = join_world(run.config.trainer.device)
    run.detector.to(world.device)
    options = loop_options(run.config, num_images=len(run.data.train), world_size=world.size)
    data = replace(run.data, val=run.data.train) if on_training_images else run.data
    metrics, _ = Evaluation(run.config, data, world, folder, options, detections)(run.detector)
    return metrics if world.is_main else {}


def evaluate_with_both(folder: Path, overrides: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Evaluate the saved detections of a run with the official packages and with the fast evaluator.

    Returns:
        The figures, by name of the evaluator.

    Raises:
        ConfigError: the folder has no detections, or an override cannot be applied.
    """
    config = read_config(folder, overrides)
    data, found = read_data(config), kept_detections(folder / DETECTIONS)
    figures = {}
    for backend in BACKENDS:
        config.trainer.evaluator = backend
        evaluator = build_evaluator(config, data)
        evaluator.process_results(found)
        figures[backend] = evaluator.evaluate()
    return figures
