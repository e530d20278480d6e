"""Convert a copy of FOD-A (Munyer et al. 2021, arXiv 2110.03072) in PASCAL VOC form; the long tail is controlled."""

from __future__ import annotations

import random
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.errors import DataError, reason
from datasets.prepared import numbered_files, open_photograph, save_photograph, write_split

SIDE, QUALITY = 192, 86
GAP = 3  # the largest step between two image numbers of one run
TRAIN_SHARE, VAL_START = 0.65, 0.75
MOST, FEWEST, VALIDATION = 300, 3, 36


@dataclass(frozen=True)
class FrameObjects:
    """Size of a frame in pixels, and (class name, x1, y1, x2, y2) of each object."""

    width: int
    height: int
    objects: tuple[tuple[str, float, float, float, float], ...]

    def records(self, classes: Sequence[str]) -> list[dict[str, Any]]:
        """COCO annotation records of the frame at ``SIDE`` x ``SIDE`` pixels."""
        along, down = SIDE / self.width, SIDE / self.height
        return [
            {
                "category_id": classes.index(name) + 1,
                "bbox": [
                    round(x1 * along, 1),
                    round(y1 * down, 1),
                    round((x2 - x1) * along, 1),
                    round((y2 - y1) * down, 1),
                ],
                "area": round((x2 - x1) * along * (y2 - y1) * down, 1),
                "iscrowd": 0,
            }
            for name, x1, y1, x2, y2 in self.objects
        ]


def prepare_foda(release: Path, root: Path) -> None:
    """Write ``train0.json``, ``train1.json``, ``val.json`` and ``images`` below ``root``.

    Args:
        release: folder with ``Annotations/NUMBER.xml`` and ``JPEGImages/NUMBER.jpg``.

    Raises:
        DataError: a file is missing or damaged, or no draw of the ranks fits the images.
    """
    frames = {n: read_frame(path) for n, path in numbered_files(release / "Annotations", ".xml").items()}
    frames = {number: frame for number, frame in frames.items() if frame.objects}
    classes = sorted({name for frame in frames.values() for name, *_ in frame.objects})
    pools, validation_pools = class_pools({number: f.objects[0][0] for number, f in frames.items()})
    validation = [number for pool in validation_pools.values() for number in thin(pool, VALIDATION)]
    splits = {"val": validation}
    for draw in (0, 1):
        wanted = drawn_counts({name: len(pool) for name, pool in pools.items()}, draw)
        splits[f"train{draw}"] = [n for name, pool in pools.items() for n in thin(pool, wanted[name])]
    for number in sorted(set().union(*splits.values())):
        image = open_photograph(release / "JPEGImages" / f"{number:06}.jpg")
        save_photograph(image, (SIDE, SIDE), root / "images" / f"{number:06}.jpg", QUALITY)
    for split, chosen in splits.items():
        images = [
            {"id": n, "file_name": f"{n:06}.jpg", "width": SIDE, "height": SIDE} for n in sorted(chosen)
        ]
        objects = {number: frames[number].records(classes) for number in chosen}
        write_split(root / f"{split}.json", images, objects, classes)


def read_frame(path: Path) -> FrameObjects:
    """The objects of one annotation file whose boxes are at least 2 pixels wide and high.

    Raises:
        DataError: the file is damaged.
    """
    try:
        tree = ElementTree.parse(path)
        width, height = (int(_text(tree.getroot(), f"size/{side}")) for side in ("width", "height"))
        objects = []
        for entry in tree.iter("object"):
            x1, y1, x2, y2 = (float(_text(entry, f"bndbox/{k}")) for k in ("xmin", "ymin", "xmax", "ymax"))
            if x2 - x1 >= 2 and y2 - y1 >= 2:
                objects.append((_text(entry, "name"), x1, y1, x2, y2))
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as an annotation: {reason(error)}; fetch the file again"
        ) from error
    return FrameObjects(width, height, tuple(objects))


def _text(element: ElementTree.Element, field: str) -> str:
    text = element.findtext(field)
    if text is None:
        raise ValueError(f"it has no {field}")
    return text


def class_pools(class_of: Mapping[int, str]) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """The training frames and the validation frames of each class, by name.

    A run is a sequence of frames of one class whose numbers differ by at most ``GAP``.  Its start is for training and its
    end for validation.
    """
    train: dict[str, list[int]] = {}
    val: dict[str, list[int]] = {}
    for name in sorted(set(class_of.values())):
        numbers = sorted(number for number, own in class_of.items() if own == name)
        runs: list[list[int]] = []
        for number in numbers:
            if not runs or number - runs[-1][-1] > GAP:
                runs.append([])
            runs[-1].append(number)
        train[name] = [number for run in runs for number in run[: int(TRAIN_SHARE * len(run))]]
        val[name] = [number for run in runs for number in run[int(VAL_START * len(run)) :]]
    return train, val


def thin(pool: Sequence[int], count: int) -> list[int]:
    """At most ``count`` evenly spaced members of a sequence."""
    if count >= len(pool):
        return list(pool)
    return [pool[int(j * len(pool) / count)] for j in range(count)]


def frequency_curve(classes: int, most: int, fewest: int) -> list[int]:
    """Number of images of each frequency rank: a geometric sequence from ``most`` to ``fewest``."""
    last = max(classes - 1, 1)
    return [max(fewest, round(most * (fewest / most) ** (rank / last))) for rank in range(classes)]


def drawn_counts(available: Mapping[str, int], draw: int, tries: int = 100_000) -> dict[str, int]:
    """Number of training images of each class: a geometric curve over the first random ranking with enough frames.

    Raises:
        DataError: no ranking has enough frames.
    """
    names = sorted(available)
    curve = frequency_curve(len(names), MOST, FEWEST)
    generator = random.Random(1000 + draw)
    for _ in range(tries):
        ranking = list(names)
        generator.shuffle(ranking)
        if all(available[name] >= count for name, count in zip(ranking, curve, strict=True)):
            return dict(zip(ranking, curve, strict=True))
    raise DataError(
        "no ranking of the classes has enough images: the copy of FOD-A is incomplete; fetch it again"
    )
