"""Convert Clothing Co-Parsing (Yang, Luo and Lin, CVPR 2014): boxes and masks from the release's pixel labels."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as run_length
from scipy.io import loadmat

from datasets.errors import DataError, reason
from datasets.prepared import numbered_files, open_photograph, save_photograph, write_split

LONG_SIDE, QUALITY = 320, 88
SMALLEST_PART, SHARE_OF_LARGEST, SMALLEST_SIDE = 30, 0.01, 2


def prepare_ccp(release: Path, root: Path) -> None:
    """Write ``split{0,1}_{a,b}.json`` and ``images`` below ``root``.

    Args:
        release: folder with ``annotations/pixel-level/NUMBER.mat``, ``photos/NUMBER.jpg`` and ``label_list.mat``.

    Raises:
        DataError: a file is missing or damaged.
    """
    names = [str(name[0]) for name in _matlab(release / "label_list.mat", "label_list").ravel()]
    images, found = [], {}
    for number, path in numbered_files(release / "annotations" / "pixel-level", ".mat").items():
        photograph = open_photograph(release / "photos" / f"{number:04}.jpg")
        size = small_size(photograph.size)
        found[number] = garments(_matlab(path, "groundtruth"), size)
        images.append({"id": number, "file_name": f"{number:04}.jpg", "width": size[0], "height": size[1]})
        save_photograph(photograph, size, root / "images" / f"{number:04}.jpg", QUALITY)
    # Equally frequent classes keep the order of their first appearance.
    ranking = [
        label for label, _ in Counter(label for own in found.values() for label, _ in own).most_common()
    ]
    objects = {
        number: [{"category_id": ranking.index(label) + 1, **record} for label, record in own]
        for number, own in found.items()
    }
    classes = {number: [record["category_id"] for record in own] for number, own in objects.items()}
    for split in (0, 1):
        for half, chosen in zip("ab", balanced_halves(classes, split), strict=True):
            own = [image for image in images if image["id"] in chosen]
            write_split(root / f"split{split}_{half}.json", own, objects, [names[label] for label in ranking])


def small_size(size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) with a long side of ``LONG_SIDE`` pixels."""
    scale = LONG_SIDE / max(size)
    return round(size[0] * scale), round(size[1] * scale)


def garments(pixels: np.ndarray, size: tuple[int, int]) -> list[tuple[int, dict[str, Any]]]:
    """The label and the COCO annotation record, without a category, of each object of a photograph.

    Args:
        pixels: (H, W) label of each pixel at full size; 0 is background.
        size: width and height of the small photograph.
    """
    height, width = pixels.shape
    along, down = size[0] / width, size[1] / height
    found = []
    for label in np.unique(pixels[pixels > 0]):
        kept = _large_parts(pixels == label)
        if kept.sum() < SMALLEST_PART:
            continue
        rows, columns = np.flatnonzero(kept.any(axis=1)), np.flatnonzero(kept.any(axis=0))
        x, y = columns[0] * along, rows[0] * down
        w, h = (columns[-1] + 1 - columns[0]) * along, (rows[-1] + 1 - rows[0]) * down
        if min(w, h) < SMALLEST_SIDE:
            continue
        mask = (
            np.asarray(Image.fromarray(kept.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR))
            > 127
        )
        code = run_length.encode(np.asfortranarray(mask.astype(np.uint8)))
        record = {
            "bbox": [round(float(value), 1) for value in (x, y, w, h)],
            "area": round(float(kept.sum()) * along * down, 1),
            "iscrowd": 0,
            "segmentation": {"size": list(code["size"]), "counts": code["counts"].decode()},
        }
        found.append((int(label), record))
    return found


def _large_parts(mask: np.ndarray) -> np.ndarray:
    """The 8-connected parts of a mask, without those that are tiny compared with the largest one."""
    _, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    large = np.flatnonzero(areas >= max(SMALLEST_PART, SHARE_OF_LARGEST * areas.max())) + 1
    return np.isin(parts, large)


def balanced_halves(classes: Mapping[int, Sequence[int]], seed: int) -> tuple[set[int], set[int]]:
    """Divide image ids into two halves that are balanced in each class; images with rare classes are assigned first."""
    total = Counter(label for own in classes.values() for label in own)
    generator = random.Random(seed)
    order = sorted(classes)
    generator.shuffle(order)
    order.sort(key=lambda i: min((total[label] for label in classes[i]), default=float("inf")))
    counts: tuple[Counter, Counter] = Counter(), Counter()
    halves: tuple[set[int], set[int]] = set(), set()
    for i in order:
        lead = sum((counts[0][label] - counts[1][label]) / total[label] for label in classes[i])
        lead += 0.02 * (len(halves[0]) - len(halves[1]))
        half = int(lead > 0 or (lead == 0 and generator.random() < 0.5))
        halves[half].add(i)
        counts[half].update(classes[i])
    return halves


def _matlab(path: Path, name: str) -> np.ndarray:
    try:
        return loadmat(path)[name]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read as a MATLAB file with {name!r}: {reason(error)}; fetch it again"
        ) from error
