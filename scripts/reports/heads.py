"""The command that draws the score maps of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import torch

from afl.tracking import write_bytes
from afl.training.data import evaluation_batches
from afl.training.detect import to_original
from afl.training.distributed import World
from afl.training.evaluation import evaluated
from afl.training.inputs import normalise
from afl.training.load import load_run
from afl.training.pictures import draw_maps, picture_of
from afl.training.prior import adapt_threshold
from detectors.views import over_content, score_maps


@torch.no_grad()
def heads(*overrides: str, run: str = "", image: str = "", results: str = "") -> Path:
    """The score maps and boxes of a run for one validation image.

        python -m scripts.report heads run=outputs/NAME [image=ID] [results=FOLDER] [OVERRIDE ...]

    Writes heads.jpg into the run directory; with results=FOLDER, FOLDER/heads/DETECTOR.jpg. Other arguments are overrides of
    the run's config, such as dataset.root=FOLDER.

    Raises:
        ValueError: no run is named, the folder is not a run, or its validation split does not have the image.
    """
    if not run:
        raise ValueError("which run? python -m scripts.report heads run=outputs/NAME")
    folder = Path(run)
    loaded = load_run(folder, list(overrides))
    ids = [str(number) for number in loaded.data.val.image_ids]
    image = image or ids[0]
    if image not in ids:
        raise ValueError(f"{folder}: the validation split has no image {image}; one of them is {ids[0]}")
    # Reads no other image of the split.
    val = loaded.data.val.select([ids.index(image)])
    (batch,) = evaluation_batches(
        loaded.config, replace(loaded.data, val=val), World(0, 1, torch.device("cpu"))
    )
    images = normalise(batch.images, loaded.config.trainer.channels_last)
    adapt_threshold(loaded.detector)
    with evaluated(loaded.detector, None):
        outputs = loaded.detector(images)
        (found,) = loaded.detector.decode(outputs, batch.sizes)
    found = to_original(found, batch.matrices[0], batch.original_sizes[0])
    height, width = images.shape[-2:]
    maps = {
        name: over_content(scores, batch.sizes[0].tolist(), (height, width)).numpy()
        for name, scores in score_maps(loaded.detector, outputs, height, width).items()
    }
    sheet = draw_maps(picture_of(val, 0, found), maps, loaded.data.statistics.names)
    path = Path(results) / "heads" / f"{loaded.config.cell.detector}.jpg" if results else folder / "heads.jpg"
    write_bytes(path, cv2.imencode(".jpg", sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes())
    print(f"written: {path} (image {image} of {loaded.config.cell.dataset})")
    return path
