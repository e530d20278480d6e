"""Development splits of foda and ccp, for the choice of a protocol with focal loss alone; no table uses them.

They contain only images of the prepared sets.  The images are linked, not copied.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.errors import DataError
from datasets.fields import load_json
from datasets.locations import require_file
from datasets.prepare_ccp import balanced_halves
from datasets.prepare_foda import frequency_curve, thin
from datasets.prepared import write_split

NUMBER = 2  # number of the draw and of the partition; the tables use 0 and 1
TRAIN_SHARE, VAL_START = 0.7, 0.75
MOST, FEWEST, VALIDATION = 150, 3, 20


@dataclass(frozen=True)
class _Prepared:
    """Prepared images and their annotation records, both in the order of the image ids, and the class names."""

    images: dict[int, dict[str, Any]]
    objects: dict[int, list[dict[str, Any]]]
    names: list[str]

    def write(self, path: Path, chosen: Iterable[int]) -> None:
        write_split(path, [self.images[i] for i in sorted(chosen)], self.objects, self.names)


def prepare_instrument(existing: Path, output: Path) -> None:
    """Write ``foda/{train2,val}.json``, ``ccp/split2_{a,b}.json`` and links to the images below ``output``.

    Args:
        existing: folder of the prepared sets ``foda`` and ``ccp``.

    Raises:
        DataError: a prepared file is missing or damaged, or ``output`` contains other images.
    """
    foda = _read(existing / "foda", ["train0", "train1"])
    ccp = _read(existing / "ccp", ["split0_a", "split0_b"])
    for name in ("foda", "ccp"):
        _link(output / name / "images", existing / name / "images")
    train, val = foda_draw({i: int(own[0]["category_id"]) for i, own in foda.objects.items() if own})
    foda.write(output / "foda" / f"train{NUMBER}.json", train)
    foda.write(output / "foda" / "val.json", val)
    classes = {i: [record["category_id"] for record in records] for i, records in ccp.objects.items()}
    for half, chosen in zip("ab", balanced_halves(classes, NUMBER), strict=True):
        ccp.write(output / "ccp" / f"split{NUMBER}_{half}.json", chosen)


def foda_draw(class_of: Mapping[int, int]) -> tuple[list[int], list[int]]:
    """Choose training and validation images.

    Image ids follow the videos: the first images of each class are for training, the last ones for validation.  Class sizes
    follow a geometric curve.  Each of its values, largest first, goes to a random class with enough images.

    Args:
        class_of: image id to the class of its first object.

    Raises:
        DataError: no class has enough images for a value of the curve.
    """
    pools: dict[int, list[int]] = {}
    for image in sorted(class_of):
        pools.setdefault(class_of[image], []).append(image)
    train = {name: pool[: int(TRAIN_SHARE * len(pool))] for name, pool in pools.items()}
    val = {name: pool[int(VAL_START * len(pool)) :] for name, pool in pools.items()}
    generator = random.Random(1000 + NUMBER)
    left, chosen = sorted(pools), []
    for count in frequency_curve(len(pools), MOST, FEWEST):
        able = [name for name in left if len(train[name]) >= count]
        if not able:
            raise DataError(f"no class of foda has {count} training images left: prepare foda again")
        name = generator.choice(able)
        left.remove(name)
        chosen += thin(train[name], count)
    return chosen, [image for pool in val.values() for image in thin(pool, VALIDATION)]


def _read(folder: Path, splits: Sequence[str]) -> _Prepared:
    """The union of prepared splits, which may share images."""
    images: dict[int, dict[str, Any]] = {}
    objects: dict[int, list[dict[str, Any]]] = {}
    for split in splits:
        path = require_file(
            folder / f"{split}.json", "set existing= to the folder of the prepared foda and ccp"
        )
        content = load_json(path)
        try:
            own = defaultdict(list)
            for record in content["annotations"]:
                kept = {name: value for name, value in record.items() if name not in ("id", "image_id")}
                own[record["image_id"]].append(kept)
            for image in content["images"]:
                images.setdefault(image["id"], image)
                objects.setdefault(image["id"], own[image["id"]])
            names = [category["name"] for category in content["categories"]]
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{path} is not a prepared split ({error!r}); prepare the data set again"
            ) from error
    return _Prepared({i: images[i] for i in sorted(images)}, objects, names)


def _link(link: Path, images: Path) -> None:
    """Create ``link`` as a link to ``images``, or accept an existing one."""
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists() and not link.is_symlink():
        link.symlink_to(images.resolve())
    elif link.resolve() != images.resolve():
        raise DataError(f"{link} is not a link to {images}: remove it, or set output= to another folder")
