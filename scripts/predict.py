"""Detect on your own images with a trained detector.

    python -m scripts.predict demo                                         # images that come with the zoo, in a few seconds
    python -m scripts.predict run=outputs/NAME images=photos               # a folder and its subfolders
    python -m scripts.predict run=zoo:NAME images=photos                   # a detector of the zoo (python -m scripts.zoo)
    python -m scripts.predict run=last.pt images=street.jpg output=found   # a checkpoint alone is enough

Options:
    run=FOLDER|FILE|zoo:NAME   a run directory, a checkpoint, or a detector of the zoo
    images=FOLDER|FILE         the images
    output=outputs/predictions the folder for the results
    score=0.3                  smallest score of a box, in pictures and JSON; 0 keeps all boxes
    flip=true                  also use a mirrored view of every image
    scales=[0.75,1.0,1.25]     use every image in these sizes and merge the boxes of all views
    device=auto                auto (CUDA if available), cpu, cuda, cuda:1
    batch=8                    images in a pass
    pictures=false             write the JSON only

The command writes every image with its boxes, under the same name as PNG or JPEG, to the output folder, and detections.json in MS
COCO's format: images, categories with the training set's ids, and annotations with a score and boxes as [x, y, width, height] in
pixels of the upright image. It does not overwrite the images, and it ignores pictures of earlier calls in the output folder.

If a file in a folder is damaged, the command names it, skips it, and ends with exit code 1. `demo` accepts run=zoo:NAME and output=FILE.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.entry import asks_for_help, options_of, quiet_libraries, run_command

if TYPE_CHECKING:
    import numpy as np

    from afl.predict import Predictor
    from detectors.contract import Detections

DEFAULTS = {
    "run": None,
    "images": None,
    "output": "outputs/predictions",
    "score": 0.3,
    "flip": bool,
    "scales": list,
    "device": "auto",
    "batch": 8,
    "pictures": True,
}


# The demo uses the first of these that the zoo contains.
DEMOS = ("fcos-foda-afl", "fcos-foda-fl", "fcos-shapes-afl")
GENERATED = "note: {} was trained on LongTail Shapes and knows generated shapes of {} pixels only; its boxes in photographs mean nothing"

KNOWN = "note: {} knows {} classes of {} only: {}"
NOTHING = "nothing was found; a lower score, such as score=0.1, shows weaker boxes"


@dataclass
class Pictures:
    """Reads image files one by one; keeps a list of the images that were read, and one line for each that was not."""

    files: list[Path]
    read: list[Path] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    waiting: list[np.ndarray] = field(default_factory=list)

    def __iter__(self) -> Iterator[np.ndarray]:
        from datasets import DataError, read_image_file

        for path in self.files:
            try:
                pixels = read_image_file(path)
            except DataError as error:
                self.broken.append(str(error))
                continue
            self.read.append(path)
            self.waiting.append(pixels)
            yield pixels


def main(arguments: list[str]) -> int:
    """Detect on ``images=FILE|FOLDER`` with ``run=FOLDER|FILE|zoo:NAME``; returns the exit code."""
    if asks_for_help(arguments, __doc__):
        return 0
    quiet_libraries()
    if arguments[:1] == ["demo"]:
        return demo(arguments[1:])
    options = _options(arguments)
    score, output = options["score"], Path(options["output"])
    test_time = _views(options)
    files, root = image_files(Path(options["images"]), without=output)
    if options["pictures"] and output.resolve() == root.resolve():
        raise ValueError(
            f"output={output} is the images' own folder, and would be written over; name another one"
        )
    # torch and the rest of the project take seconds: they are imported after the arguments have been checked.
    import cv2
    from rich.console import Console
    from rich.progress import track

    from afl.predict import load_predictor
    from afl.tracking import write_bytes, write_json
    from afl.training.detect import TestTime
    from afl.training.pictures import draw_found

    predictor = load_predictor(
        options["run"],
        device=options["device"],
        test_time=None if test_time is None else TestTime(**test_time),
        batch_size=options["batch"],
    )
    _print_note(options["run"], predictor)
    pictures = Pictures(files)
    document = {"images": [], "annotations": [], "categories": _categories(predictor)}
    stream, console = predictor.stream(pictures, score=score), Console(stderr=True)
    quiet = not console.is_terminal
    for found in track(stream, total=len(files), console=console, transient=True, disable=quiet):
        path, pixels = pictures.read[len(document["images"])], pictures.waiting.pop(0)
        place = path.relative_to(root)
        _describe(document, place, pixels, found, predictor)
        if options["pictures"]:
            drawn = draw_found(pixels, found, predictor.names)
            kind = ".jpg" if path.suffix.lower() in (".jpg", ".jpeg") else ".png"
            # The suffix is part of the name, so that a.png and a.jpg have different names.
            target = place if place.suffix.lower() == kind else place.with_name(place.name + kind)
            write_bytes(output / target, cv2.imencode(kind, drawn[..., ::-1])[1].tobytes())
    for line in pictures.broken:
        print(line, file=sys.stderr)
    if not document["images"]:
        return 1
    write_json(output / "detections.json", document)
    images, boxes = len(document["images"]), len(document["annotations"])
    print(
        f"{images} image{'s' * (images != 1)}, {boxes} box{'es' * (boxes != 1)} with a score of at least {score:g} "
        f"({predictor.checkpoint}, step {predictor.step}); written: {output}/detections.json"
        + (" and the pictures next to it" if options["pictures"] else "")
    )
    if not document["annotations"]:
        print(NOTHING)
    return 1 if pictures.broken else 0


def demo(arguments: list[str]) -> int:
    """Draw the detections of a detector of the zoo in images of the zoo; returns the exit code."""
    options = options_of(arguments, {"run": None, "output": "outputs/demo.png"})
    output = Path(options["output"])
    if output.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"output={output} is not an image file; give it the suffix .png or .jpg")
    import cv2

    from afl.predict import load_predictor
    from afl.tracking import write_bytes
    from afl.zoo import ZOO, names, read_entry
    from afl.zoo.kept_images import kept_sheet

    run = options["run"] or next(f"zoo:{name}" for name in DEMOS if name in names())
    predictor = load_predictor(run, device="cpu")
    if predictor.checkpoint.parent != ZOO:
        raise ValueError(
            f"run={run} is not a detector of the zoo; a demo needs zoo:NAME, other runs need images=FOLDER"
        )
    entry, _ = read_entry(predictor.checkpoint)
    if not entry.kept:
        raise ValueError(f"{run} has no images in the zoo; name your own: images=FOLDER")
    sheet = kept_sheet(
        predictor, ZOO / entry.kept["folder"], 4, f"{entry.name}: validation images. {entry.note}"
    )
    write_bytes(output, cv2.imencode(output.suffix, sheet[..., ::-1])[1].tobytes())
    print(
        f"{entry.name}: AP {100 * entry.metrics['AP']:.1f} on the whole validation set; 4 of its images: {output}"
    )
    return 0


def image_files(place: Path, without: Path | None = None) -> tuple[list[Path], Path]:
    """The file ``place``, or all image files in and below the folder ``place``, in order; and the folder that their names
    are relative to. A link to a missing file counts as a file, so that reading it names it.

    Args:
        without: a folder inside ``place`` that is skipped.

    Raises:
        FileNotFoundError: the file or folder does not exist, or a folder has no image files.
    """
    if place.is_file():
        return [place], place.parent
    if not place.is_dir():
        raise FileNotFoundError(f"images={place}: there is no such file or folder")
    from datasets.files import files_below
    from datasets.images import IMAGE_SUFFIXES

    files = [path for path in files_below(place) if path.suffix.lower() in IMAGE_SUFFIXES]
    if without is not None and without.resolve() != place.resolve():
        files = [path for path in files if not path.resolve().is_relative_to(without.resolve())]
    if not files:
        raise FileNotFoundError(f"images={place}: the folder has no image ({', '.join(IMAGE_SUFFIXES)})")
    return files, place


def _options(arguments: list[str]) -> dict[str, Any]:
    """The options of the command.

    Raises:
        ValueError: an option is missing, unknown or has an impossible value.
    """
    for argument in arguments:
        if "=" not in argument and Path(argument).exists():
            raise ValueError(f"write images={argument} for this file or folder")
    options = options_of(arguments, DEFAULTS)
    for name in ("run", "images"):
        if options[name] is None:
            raise ValueError(f"which {name}? python -m scripts.predict run=outputs/NAME images=FOLDER")
    if options["batch"] < 1:
        raise ValueError(f"batch is {options['batch']}; it must be at least 1")
    if not 0 <= options["score"] <= 1:
        raise ValueError(f"score is {options['score']!r}; it must be a number from 0 to 1")
    return options


def _print_note(run: str, predictor: Predictor) -> None:
    """Say what a detector of generated images, or of the zoo, knows."""
    dataset = predictor.config.dataset
    if predictor.config.cell.dataset.startswith("shapes"):
        print(GENERATED.format(run, dataset.image_size), file=sys.stderr)
    elif run.startswith("zoo:"):
        names = ", ".join(map(str, predictor.names))
        print(KNOWN.format(run, len(predictor.names), dataset.name, names), file=sys.stderr)


def _describe(
    document: dict, name: Path, pixels: np.ndarray, found: Detections, predictor: Predictor
) -> None:
    """Append an image and its boxes to the COCO-format ``document``."""
    image_id = len(document["images"]) + 1
    height, width = pixels.shape[:2]
    document["images"].append(
        {"id": image_id, "file_name": name.as_posix(), "width": width, "height": height}
    )
    for box, score, label in zip(
        found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
    ):
        sides = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
        document["annotations"].append(
            {
                "id": len(document["annotations"]) + 1,
                "image_id": image_id,
                "category_id": predictor.category_ids[label],
                "bbox": sides,
                "area": sides[2] * sides[3],
                "iscrowd": 0,
                "score": score,
            }
        )


def _categories(predictor: Predictor) -> list[dict]:
    return [
        {"id": number, "name": name}
        for number, name in zip(predictor.category_ids, predictor.names, strict=True)
    ]


def _views(options: dict) -> dict | None:
    """Views of every image as arguments of TestTime; None, which means those of the run's evaluation, without such options."""
    if options["flip"] is None and options["scales"] is None:
        return None
    scales = [1.0] if options["scales"] is None else options["scales"]
    positive = [
        isinstance(scale, int | float) and not isinstance(scale, bool) and scale > 0 for scale in scales
    ]
    if not positive or not all(positive):
        raise ValueError(
            f"scales is {scales!r}; it must be a list of positive numbers such as [0.75,1.0,1.25]"
        )
    return {"flip": bool(options["flip"]), "scales": tuple(scales)}


if __name__ == "__main__":
    run_command(main)
