"""Convert Chula RBC-12 (Naruenatthanaset et al. 2021, arXiv 2012.01321): boxes from the release's points."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy import ndimage

from datasets.errors import DataError, reason
from datasets.prepared import numbered_files, open_photograph, save_photograph, write_split

CLASSES = (
    "normal cell", "macrocyte", "microcyte", "spherocyte", "target cell", "stomatocyte", "ovalocyte", "teardrop",
    "burr cell", "schistocyte", "uncategorised", "hypochromia", "elliptocyte",
)  # fmt: skip
QUALITY, BLOCK = 88, 8
SMALLEST, LARGEST, HALF = 16, 72, 20  # pixels of the release


def prepare_chula(release: Path, root: Path) -> None:
    """Write ``split{0,1}_{a,b}.json`` and ``images`` below ``root``.

    Args:
        release: folder with ``Dataset/NUMBER.jpg`` and ``Label/NUMBER.txt``.

    Raises:
        DataError: a file is missing or damaged.
    """
    images, objects = [], {}
    photographs = numbered_files(release / "Dataset", ".jpg")
    labels = numbered_files(release / "Label", ".txt")
    for number, (name, path) in enumerate(
        ((n, path) for n, path in photographs.items() if n in labels), start=1
    ):
        image = open_photograph(path)
        size = image.width // 2, image.height // 2
        objects[number] = cell_records(np.asarray(image), read_points(labels[name]))
        images.append({"id": number, "file_name": path.name, "width": size[0], "height": size[1]})
        save_photograph(image, size, root / "images" / path.name, QUALITY)
    classes = {number: [record["category_id"] for record in own] for number, own in objects.items()}
    for split in (0, 1):
        for half, chosen in zip("ab", halves_of_blocks(classes, split), strict=True):
            own = [image for image in images if image["id"] in chosen]
            write_split(root / f"split{split}_{half}.json", own, objects, CLASSES)


def read_points(path: Path) -> list[tuple[int, int, int]]:
    """(x, y, class number) of each line.

    Raises:
        DataError: a line is not three whole numbers.
    """
    try:
        lines = path.read_text().splitlines()
        return [
            (int(x), int(y), int(label)) for x, y, label in (line.split() for line in lines if line.split())
        ]
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as lines of x, y, class: {reason(error)}; fetch the file again"
        ) from error


def cell_records(image: np.ndarray, points: Sequence[tuple[int, int, int]]) -> list[dict[str, Any]]:
    """COCO annotation records at half size.

    Args:
        image: (H, W, 3) RGB.
        points: (x, y, class number) in pixels of the image.
    """
    height, width = image.shape[:2]
    points = [p for p in points if 0 <= p[0] < width and 0 <= p[1] < height and p[2] < len(CLASSES)]
    green = np.ascontiguousarray(image[:, :, 1])
    threshold, _ = cv2.threshold(green, 0, 255, cv2.THRESH_OTSU)
    cells = ndimage.binary_fill_holes(green < threshold).astype(np.uint8)
    _, parts, stats, _ = cv2.connectedComponentsWithStats(cells, connectivity=4)
    shared = Counter(int(parts[y, x]) for x, y, _ in points)
    records = []
    for x, y, label in points:
        part = int(parts[y, x])
        left, top, wide, high = (int(value) for value in stats[part][:4])
        fits = all(SMALLEST <= side <= LARGEST for side in (wide, high))
        if part == 0 or shared[part] > 1 or not fits:
            left, top = max(x - HALF, 0), max(y - HALF, 0)
            wide, high = min(x + HALF, width) - left, min(y + HALF, height) - top
        box = [left / 2, top / 2, wide / 2, high / 2]
        records.append(
            {"category_id": label + 1, "bbox": box, "area": round(box[2] * box[3], 1), "iscrowd": 0}
        )
    return records


def halves_of_blocks(classes: Mapping[int, Sequence[int]], seed: int) -> tuple[set[int], set[int]]:
    """Divide image ids into two halves of blocks of consecutive images that are balanced in each class."""
    ids = sorted(classes)
    blocks = [ids[start : start + BLOCK] for start in range(0, len(ids), BLOCK)]
    random.Random(seed).shuffle(blocks)
    total = Counter(label for own in classes.values() for label in own)
    counts: tuple[Counter, Counter] = Counter(), Counter()
    halves: tuple[set[int], set[int]] = set(), set()
    for block in blocks:
        cells = [label for i in block for label in classes[i]]
        lead = sum((counts[0][label] - counts[1][label]) / total[label] for label in cells)
        half = int(lead > 0)
        halves[half].update(block)
        counts[half].update(cells)
    return halves
