"""A zoo entry from a finished run: round its weights, measure the rounded detector, keep a few images to check it with."""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from afl.predict import Predictor, load_predictor
from afl.tracking import environment, names_afl, read_record, write_json
from afl.training.checkpoint import CheckpointError, load_checkpoint
from afl.training.evaluation import evaluate_run
from afl.training.load import LoadedRun, load_run
from afl.training.run_identity import RECORD
from afl.zoo.files import NOTE, SUFFIX, Entry, read_entry, stored, write_entry
from afl.zoo.kept_images import ANNOTATIONS, kept_ap
from datasets import AnnotationIndex, read_image_file
from detectors.backbone import evaluated_weights

IMAGES = "images"
TIMED, PASSES = 20, 5  # images whose time is measured, and how often
# Parts of a config that name files and services of the machine that trained, which a reader of the entry does not have. They are some
# of those that a run key leaves out; an entry keeps the others, such as the number of threads.
OUTSIDE = (
    "paths",
    "logger",
    "dataset.root",
    "dataset.images",
    "dataset.folder",
    "dataset.train",
    "dataset.val",
)


def make_entry(name: str, run: Path, zoo: Path, *, command: str, images: int) -> Path:
    """Write ``zoo/NAME.safetensors`` from the run directory ``run``.

    Args:
        command: what trains the same run.
        images: number of validation images to keep in ``zoo/images``; 0 for a data set that may not be copied.

    Returns:
        The file.

    Raises:
        CheckpointError: the run has no checkpoint or is not finished.
    """
    record = read_record(run / RECORD)
    if record.status != "finished":
        raise CheckpointError(f"{run} is not finished ({record.error}); run the same command again")
    loaded = load_run(run)
    state = load_checkpoint(loaded.checkpoint)
    weights = evaluated_weights(state)
    rounded = {key: value.to(weights[key].dtype) for key, value in stored(weights).items()}
    loaded.detector.load_state_dict(rounded)
    kept = _kept_images(loaded, zoo, images)
    with tempfile.TemporaryDirectory() as folder:
        measured = evaluate_run(loaded, Path(folder))
    entry = Entry(
        name=name,
        about={**state["about"], "config": _without_outside(state["about"]["config"])},
        step=loaded.step,
        metrics={key: value for key, value in measured.items() if key != "per_class"},
        run={
            "key": record.key,
            "commit": record.git["sha"],
            "source": record.git["source"],
            "data_hash": record.data_hash,
            "protocol": record.protocol,
            "device": record.environment["device"],
            "train_seconds": record.train_seconds,
            "peak_memory_bytes": record.peak_memory_bytes,
            "parameters": record.parameters,
            "metrics": record.metrics,
        },
        kept={},
        speed={},
        command=command,
        note=NOTE if names_afl(record.loss) else "",
    )
    path = zoo / f"{name}{SUFFIX}"
    write_entry(path, entry, rounded)
    # The written file itself is measured: it is what a user loads.
    predictor = load_predictor(path, device="cpu")
    figures = {"speed": _speed(predictor, loaded.data.val)}
    if kept is not None:
        found = kept_ap(predictor, kept)
        number = min(images, len(loaded.data.val))
        figures["kept"] = {"folder": f"{IMAGES}/{kept.name}", "images": number, "AP": found}
    write_entry(path, replace(entry, **figures), rounded)
    read_entry(path)
    return path


def _kept_images(run: LoadedRun, zoo: Path, images: int) -> Path | None:
    """Evenly spaced validation images of the run with their annotations, and the licence that comes with the data set.

    Raises:
        CheckpointError: the folder holds other images already.
        ValueError: the number is negative.
    """
    if images < 0:
        raise ValueError(f"images is {images}, but the number of images to keep must not be negative")
    if not images:
        return None
    val = run.data.val
    images = min(images, len(val))
    chosen = val.select(np.linspace(0, len(val) - 1, images).round().astype(int).tolist())
    folder = zoo / IMAGES / run.config.cell.dataset
    truth = _truth(chosen)
    if (folder / ANNOTATIONS).is_file():
        if json.loads((folder / ANNOTATIONS).read_text(encoding="utf-8")) != truth:
            raise CheckpointError(
                f"{folder} holds images of another state of the data set; entries share their images, so delete it "
                "and make all entries of the data set again"
            )
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(truth["images"]):
        shutil.copyfile(chosen.image_path(i), folder / image["file_name"])
    licence = Path(chosen.image_root).parent / "LICENSE"
    if licence.is_file():
        shutil.copyfile(licence, folder / "LICENSE")
    write_json(folder / ANNOTATIONS, truth)
    return folder


def _truth(index: AnnotationIndex) -> dict[str, Any]:
    """The annotations of ``index`` in MS COCO's format, boxes only, with file names without folders.

    Files of different folders can have the same name; then each name starts with the image id.
    """
    whole = index.coco_dict()
    names = [Path(file).name for file in index.file_names]
    if len({name.lower() for name in names}) < len(names):
        names = [f"{image['id']}_{name}" for image, name in zip(whole["images"], names, strict=True)]
    fields = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
    return {
        "images": [
            {**{key: image[key] for key in ("id", "width", "height")}, "file_name": name}
            for image, name in zip(whole["images"], names, strict=True)
        ],
        "annotations": [{key: one[key] for key in fields} for one in whole["annotations"]],
        "categories": [{key: one[key] for key in ("id", "name")} for one in whole["categories"]],
    }


def _without_outside(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without the files and services of the machine that trained."""
    kept = OmegaConf.create(dict(config))
    for name in OUTSIDE:
        part, _, key = name.rpartition(".")
        place = OmegaConf.select(kept, part) if part else kept
        if key in place:
            del place[key]
    plain: Any = OmegaConf.to_container(kept)
    return plain


def _speed(predictor: Predictor, val: AnnotationIndex) -> dict[str, Any]:
    """Processor time of an image with one thread, without reading the file: the median over images of the fastest of some passes."""
    images = [read_image_file(val.image_path(i)) for i in range(min(TIMED, len(val)))]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = [min(_seconds(predictor, image) for _ in range(PASSES)) for image in images]
    finally:
        torch.set_num_threads(threads)
    return {
        "milliseconds": 1000 * statistics.median(times),
        "device": environment("cpu")["device"],
        "size": list(images[0].shape[:2]),
    }


def _seconds(predictor: Predictor, image: np.ndarray) -> float:
    # Processor time: on a busy machine, wall time is that of the other programs as well.
    started = time.process_time()
    predictor(image)
    return time.process_time() - started
