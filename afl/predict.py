"""Runs a trained detector on your images, with only its file.

    from afl.predict import load_predictor

    predictor = load_predictor("outputs/NAME")      # or the path of a checkpoint, or a detector of the zoo: "zoo:NAME"
    found = predictor("street.jpg")                 # boxes (n, 4) xyxy in pixels, scores (n,), labels (n,)

``predictor.names[label]`` is the name of a class. A list of images gives a list. Images are resized as in the run's evaluation;
boxes are in pixels of the given image. Detections with a score of at least 0.3 are returned; ``predictor(image, score=0)``
returns all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from afl.config import missing_run
from afl.training.build import PRECISIONS, build_detector, check_targets, instantiate
from afl.training.checkpoint import LAST, CheckpointError, load_checkpoint, reason
from afl.training.detect import TestTime, detect
from afl.training.distributed import choose_device
from afl.training.inputs import normalise
from afl.training.load import load_weights
from afl.training.prior import adapt_threshold, calibrate
from afl.zoo.files import PREFIX, SUFFIX, names, read_entry, zoo_file
from datasets import Sample, collate, read_image_file
from detectors.contract import ClassCounts, Detections
from detectors.views import over_content, score_maps

Image = str | Path | np.ndarray
PLACES = "fractal_dimension"  # only checkpoints of losses that need it have it
SCORE = 0.3  # least score of a detection, here and in scripts.predict


@dataclass(frozen=True)
class Predictor:
    """A detector with everything that is needed to use it.

    Attributes:
        detector: in evaluation mode, on ``device``.
        config: of its run.
        names: (C,) class names; ``category_ids``: (C,) their ids in the data set; ``groups``: (C,) "r", "c" or "f".
        checkpoint: the file of the weights; ``step``: their number of optimiser steps.
        device: of the detector.
        test_time: views of every image.
        batch_size: images per pass, for calls with several images.
    """

    detector: nn.Module
    config: DictConfig
    names: Sequence[str]
    category_ids: Sequence[int]
    groups: Sequence[str]
    checkpoint: Path
    step: int
    device: torch.device
    test_time: TestTime
    batch_size: int

    @overload  # a str, which is a sequence of str, too, is one file name
    def __call__(self, images: Image, *, score: float = SCORE) -> Detections: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, images: Sequence[Image], *, score: float = SCORE) -> list[Detections]: ...

    def __call__(
        self, images: Image | Sequence[Image], *, score: float = SCORE
    ) -> Detections | list[Detections]:
        """Detect objects in one image, or in each of several images; detections are in descending order of score.

        Args:
            images: paths of image files, rotated according to their EXIF orientation, or (H, W, 3) uint8 RGB arrays.
            score: smallest score of a detection, from 0 (all of them) to 1.

        Returns:
            Boxes (n, 4) float32 xyxy in pixels of the image, clipped to the image, scores (n,) and labels (n,) int64 in
            [0, C), all on the CPU.

        Raises:
            DataError: a file is missing, damaged or not an image.
            ValueError: an array is not (H, W, 3) uint8, or the score is not between 0 and 1.
        """
        if isinstance(images, str | Path | np.ndarray):
            return next(self.stream([images], score=score))
        return list(self.stream(images, score=score))

    def stream(self, images: Iterable[Image], *, score: float = SCORE) -> Iterator[Detections]:
        """Detect objects in any number of images, with at most one batch of them in memory."""
        if not 0 <= score <= 1:
            raise ValueError(f"score is {score!r}; it must be a number from 0 to 1")
        transform = instantiate(self.config.dataset.eval_transform[self.config.family])
        trainer = self.config.trainer
        rng = np.random.default_rng(0)  # transforms of evaluation draw nothing from it
        samples = (transform(_sample(image), rng) for image in images)
        batches = (collate(part) for part in _parts(samples, self.batch_size))
        for _, found in detect(
            self.detector,
            batches,
            device=self.device,
            autocast=PRECISIONS[trainer.precision],
            channels_last=trainer.channels_last,
            test_time=self.test_time,
        ):
            yield from (above(one, score) for one in found)

    @torch.no_grad()
    def score_maps(self, image: Image) -> dict[str, np.ndarray]:
        """The score maps of the heads for one image: the score of the best class at every location.

        Args:
            image: as for a call.

        Returns:
            By the name of the map, (h, w) float32 probabilities over the image; heads on a pyramid have one map for each level.
        """
        transform = instantiate(self.config.dataset.eval_transform[self.config.family])
        batch = collate([transform(_sample(image), np.random.default_rng(0))])
        images = normalise(batch.images.to(self.device), self.config.trainer.channels_last)
        height, width = images.shape[-2:]
        maps = score_maps(self.detector, self.detector(images), height, width)
        size = tuple(batch.sizes[0].tolist())
        return {name: over_content(one, size, (height, width)).numpy() for name, one in maps.items()}


def above(found: Detections, score: float) -> Detections:
    """The detections with at least the given score."""
    kept = found.scores >= score
    return Detections(boxes=found.boxes[kept], scores=found.scores[kept], labels=found.labels[kept])


def load_predictor(
    run: str | Path, *, device: str = "auto", test_time: TestTime | None = None, batch_size: int = 8
) -> Predictor:
    """Load the detector of a run directory, a checkpoint or the zoo, without its data set and without a network connection.

    Args:
        run: run directory of ``scripts.train``, a checkpoint such as its ``checkpoints/last.pt``, ``zoo:NAME``, or a file of
            the zoo in any folder.
        device: ``auto`` (CUDA if available), or a torch device name.
        test_time: views of every image; None for those of the run's evaluation.
        batch_size: images per pass.

    Raises:
        CheckpointError: the file is missing, damaged, not a checkpoint of this project, or an old checkpoint without the
            description of its detector.
        ValueError: the device does not exist, or the batch size is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; at least one image is needed")
    chosen = choose_device(device)
    path = checkpoint_of(run)
    state = state_of(path)
    about = described(state, path)
    config = OmegaConf.create(about["config"])
    try:
        if "pretrained" in config.backbone:
            config.backbone.pretrained = False  # the checkpoint has all weights: nothing needs a download
        check_targets(config.dataset.eval_transform, "dataset.eval_transform")
        instances, images = (
            torch.tensor(about[name], dtype=torch.float32) for name in ("instances", "images")
        )
        detector = build_detector(config, ClassCounts(instances, images, _places(about)))
        views = test_time or TestTime(**OmegaConf.to_container(config.trainer.test_time))
        layout = torch.channels_last if config.trainer.channels_last else torch.contiguous_format
        precision, family = config.trainer.precision, config.family
        known = precision in PRECISIONS and family in config.dataset.eval_transform
    except (
        OmegaConfBaseException,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:
        raise CheckpointError(f"{path}: its config builds no detector ({reason(error)})") from error
    if not known:
        raise CheckpointError(
            f"{path}: its config has the precision {precision!r} and the inputs {family!r}, which are unknown"
        )
    step = load_weights(detector, state, path)
    adapt_threshold(detector)
    calibrate(detector)
    return Predictor(
        detector=detector.eval().to(chosen, memory_format=layout),
        config=config,
        names=tuple(about["names"]),
        category_ids=tuple(about["category_ids"]),
        groups=tuple(about["groups"]),
        checkpoint=path,
        step=step,
        device=chosen,
        test_time=views,
        batch_size=batch_size,
    )


def described(state: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """The description of the detector in a checkpoint: config, classes and their counts.

    Raises:
        CheckpointError: the description is missing, its lists have different lengths, or its config has external references.
    """
    about = state.get("about")
    if about is None:
        raise CheckpointError(
            f"{path} has no config and no class names, because an older version wrote it; train the run again, "
            "or evaluate it with scripts.evaluate, which reads the data set"
        )
    if not isinstance(about, dict) or not isinstance(about.get("config"), dict):
        raise CheckpointError(f"{path} is damaged: 'about' has no config")
    lists = ["names", "category_ids", "groups", "instances", "images"]
    lists += [PLACES] if PLACES in about else []
    lengths = {
        name: len(about[name]) if isinstance(about.get(name), list | tuple) else None for name in lists
    }
    if len(set(lengths.values())) != 1 or not lengths["names"]:
        said = ", ".join(f"{length or 'no'} {name}" for name, length in lengths.items())
        raise CheckpointError(f"{path} is damaged: it has {said}; each class needs one of each")
    found = _reference(about["config"], "config")
    if found:
        raise CheckpointError(
            f"{path}: {found} refers to something else; a checkpoint's config holds values only"
        )
    return about


def _places(about: Mapping[str, Any]) -> Callable[[], torch.Tensor] | None:
    """Computes where the objects of each class are, for the losses that need it; None if the checkpoint does not say."""
    return partial(torch.tensor, about[PLACES], dtype=torch.float64) if PLACES in about else None


def _reference(value: Any, name: str) -> str | None:
    """The name of the first value in a config that has a reference, such as ``${oc.env:HOME}``."""
    pairs: Iterable[tuple[Any, Any]]
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list | tuple):
        pairs = enumerate(value)
    else:
        return name if isinstance(value, str) and "${" in value else None
    return next((found for key, one in pairs if (found := _reference(one, f"{name}.{key}"))), None)


def checkpoint_of(run: str | Path) -> Path:
    """The file for ``run``: the file itself, the last checkpoint of a run directory, or the file of ``zoo:NAME``.

    Raises:
        CheckpointError: there is no such file or folder, the folder has no checkpoint, or the zoo has no such name.
    """
    if str(run).startswith(PREFIX):
        return zoo_file(str(run).removeprefix(PREFIX))
    path = Path(run)
    if not path.exists():
        some = f"for example {PREFIX}{names()[0]}" if names() else "none on this machine"
        raise CheckpointError(
            f"{missing_run(path)} Detectors that need no training ({some}): python -m scripts.zoo"
        )
    if not path.is_dir():
        return path
    for place in (path / "checkpoints" / LAST, path / LAST):
        if place.is_file():
            return place
    raise CheckpointError(
        f"{path} has no checkpoints/{LAST}: it is not a run directory, or nothing was trained"
    )


def state_of(path: Path) -> Mapping[str, Any]:
    """The content of a checkpoint, or of a file of the zoo in the same form.

    Raises:
        CheckpointError: the file is missing, damaged or of another kind.
    """
    if path.suffix != SUFFIX:
        return load_checkpoint(path)
    entry, weights = read_entry(path)
    return {"model": weights, "average": None, "step": entry.step, "about": entry.about}


def _sample(image: Image) -> Sample:
    pixels = image if isinstance(image, np.ndarray) else read_image_file(Path(image))
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise ValueError(
            f"an image is a (H, W, 3) uint8 RGB array, not {'x'.join(map(str, pixels.shape))} {pixels.dtype}"
        )
    return Sample(
        image=np.ascontiguousarray(pixels),
        boxes=np.zeros((0, 4), np.float32),
        labels=np.zeros(0, np.int64),
        ignored=np.zeros(0, bool),
        image_id=0,
        original_size=pixels.shape[:2],
        matrix=np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
    )


def _parts(samples: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    left = iter(samples)
    while part := list(itertools.islice(left, size)):
        yield part
