"""``python -m scripts.report heads run=FOLDER [image=ID] [results=results]``: what a detector's heads see of one image."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from omegaconf import OmegaConf

from afl.tracking import Picture, write_bytes
from afl.training.data import evaluation_batches
from afl.training.distributed import World
from afl.training.evaluation import to_original
from afl.training.load import load_run
from afl.training.loop import normalise
from afl.training.pictures import draw_maps
from datasets.images import read_image
from detectors.views import score_maps


@torch.no_grad()
def draw_heads(arguments: list[str]) -> Path:
    """Draw the score maps and boxes of one validation image of a run; returns the JPEG that was written."""
    given = OmegaConf.from_dotlist(arguments)
    if "run" not in given:
        sys.exit("which run? python -m scripts.report heads run=outputs/NAME")
    folder, image_id = Path(given.pop("run")), given.pop("image", None)
    results = Path(given.pop("results", "results"))
    run = load_run(folder, given)
    for batch in evaluation_batches(run.config, run.data, World(0, 1, torch.device("cpu"))):
        numbers = batch.image_ids.tolist()
        number = numbers[0] if image_id is None else image_id
        if number not in numbers:
            continue
        i = numbers.index(number)
        images = normalise(batch.images[i : i + 1], run.config.trainer.channels_last)
        outputs = run.detector(images)
        (found,) = run.detector.decode(outputs, batch.sizes[i : i + 1])
        found = to_original(found, batch.matrices[i], batch.original_sizes[i])
        height, width = images.shape[-2:]
        maps = {
            name: _over_content(scores.numpy(), batch.sizes[i].tolist(), (height, width))
            for name, scores in score_maps(run.detector, outputs, height, width).items()
        }
        place = run.data.val.image_ids.tolist().index(number)
        chosen = run.data.val.annotations(place)
        picture = Picture(
            name=str(number),
            pixels=read_image(run.data.val, place),
            boxes=run.data.val.boxes[chosen],
            labels=run.data.val.labels[chosen],
            found_boxes=found.boxes.numpy(),
            found_scores=found.scores.numpy(),
            found_labels=found.labels.numpy(),
        )
        sheet = draw_maps(picture, maps, run.data.statistics.names)
        path = results / "heads" / f"{run.config.cell.detector}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, cv2.imencode(".jpg", sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes())
        print(f"written: {path} (image {number} of {run.config.cell.dataset})")
        return path
    sys.exit(f"{folder}: the validation split has no image {image_id}")


def _over_content(scores: np.ndarray, size: list[int], padded: tuple[int, int]) -> np.ndarray:
    """The part of a map that lies over the image and not over its padding."""
    rows = max(1, round(scores.shape[0] * size[0] / padded[0]))
    columns = max(1, round(scores.shape[1] * size[1] / padded[1]))
    return scores[:rows, :columns]
