"""The prepared form of the photograph data sets: reduced JPEG files and compact COCO JSON files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from datasets.errors import DataError, reason
from datasets.files import write_bytes


def numbered_files(folder: Path, suffix: str) -> dict[int, Path]:
    """Files of a release whose names are numbers, in the order of the numbers.

    Raises:
        DataError: the folder is missing or contains no such file.
    """
    found = {int(path.stem): path for path in folder.glob(f"*{suffix}") if path.stem.isdecimal()}
    if not found:
        raise DataError(f"{folder} has no files NUMBER{suffix}: set existing= to the folder of the release")
    return dict(sorted(found.items()))


def open_photograph(path: Path) -> Image.Image:
    """A photograph of a release as RGB.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise DataError(
            f"{path} cannot be read as an image: {reason(error)}; fetch the file again"
        ) from error


def save_photograph(image: Image.Image, size: tuple[int, int], path: Path, quality: int) -> None:
    """Resize to (width, height) in pixels with the Lanczos filter and save as JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.resize(size, Image.Resampling.LANCZOS).save(path, "JPEG", quality=quality)


def write_split(
    path: Path,
    images: Iterable[Mapping[str, Any]],
    objects: Mapping[int, Sequence[Mapping[str, Any]]],
    categories: Sequence[str],
) -> None:
    """Write one split as COCO JSON.

    Args:
        path: the file.
        images: COCO image records.
        objects: the annotation records of each image id in order, without ``id`` and ``image_id``; annotation ids count
            from 1 in the order of the images.
        categories: class names; category ids count from 1.
    """
    images = list(images)
    listed = [(image["id"], record) for image in images for record in objects[image["id"]]]
    content = {
        "images": images,
        "annotations": [
            {"id": number, "image_id": image_id, **record}
            for number, (image_id, record) in enumerate(listed, start=1)
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(categories, start=1)],
    }
    write_bytes(path, json.dumps(content, separators=(",", ":")).encode())
