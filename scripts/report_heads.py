"""``python -m scripts.report heads run=FOLDER [image=ID] [results=FOLDER]``: what a detector's heads see of one image.

Written to ``heads.jpg`` in the run directory; with ``results``, to ``FOLDER/heads/DETECTOR.jpg``, as in README.md.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch

from afl.tracking import Picture, write_bytes
from afl.training.data import evaluation_batches
from afl.training.detect import to_original
from afl.training.distributed import World
from afl.training.inputs import normalise
from afl.training.load import load_run
from afl.training.pictures import draw_maps
from datasets.images import read_image
from detectors.views import score_maps
from scripts.entry import own_options

DEFAULTS = {"run": None, "image": int, "results": None}


@torch.no_grad()
def draw_heads(arguments: list[str]) -> Path:
    """Draw the score maps and boxes of one validation image of a run; returns the JPEG that was written.

    Raises:
        ValueError: no run is named, it is not one, or its validation split has no such image.
    """
    options, overrides = own_options(arguments, DEFAULTS)
    if not options["run"]:
        raise ValueError("which run? python -m scripts.report heads run=outputs/NAME")
    folder, image_id, results = Path(options["run"]), options["image"], options["results"]
    run = load_run(folder, overrides)
    numbers = run.data.val.image_ids.tolist()
    number = numbers[0] if image_id is None else image_id
    if number not in numbers:
        raise ValueError(f"{folder}: the validation split has no image {number}; one of them is {numbers[0]}")
    # Nothing else of the split is read.
    val = run.data.val.select([numbers.index(number)])
    (batch,) = evaluation_batches(run.config, replace(run.data, val=val), World(0, 1, torch.device("cpu")))
    images = normalise(batch.images, run.config.trainer.channels_last)
    outputs = run.detector(images)
    (found,) = run.detector.decode(outputs, batch.sizes)
    found = to_original(found, batch.matrices[0], batch.original_sizes[0])
    height, width = images.shape[-2:]
    maps = {
        name: _over_content(scores.numpy(), batch.sizes[0].tolist(), (height, width))
        for name, scores in score_maps(run.detector, outputs, height, width).items()
    }
    picture = Picture(
        name=str(number),
        pixels=read_image(val, 0),
        boxes=val.boxes,
        labels=val.labels,
        found_boxes=found.boxes.numpy(),
        found_scores=found.scores.numpy(),
        found_labels=found.labels.numpy(),
    )
    sheet = draw_maps(picture, maps, run.data.statistics.names)
    path = Path(results) / "heads" / f"{run.config.cell.detector}.jpg" if results else folder / "heads.jpg"
    write_bytes(path, cv2.imencode(".jpg", sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes())
    print(f"written: {path} (image {number} of {run.config.cell.dataset})")
    return path


def _over_content(scores: np.ndarray, size: list[int], padded: tuple[int, int]) -> np.ndarray:
    """The part of a map that lies over the image and not over its padding."""
    rows = max(1, round(scores.shape[0] * size[0] / padded[0]))
    columns = max(1, round(scores.shape[1] * size[1] / padded[1]))
    return scores[:rows, :columns]
