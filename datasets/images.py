"""Image files: decoded, or said to be broken.

OpenCV decodes a JPEG that was cut off without complaint and leaves the rest grey; here that is an error.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from datasets.defects import Defect, DefectLog
from datasets.errors import DataError
from datasets.index import AnnotationIndex

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG"
_END_OF_JPEG, _START_OF_SCAN, _END_OF_PNG = b"\xff\xd9", b"\xff\xda", b"IEND"
_TAIL = 4096


class ImageError(DataError):
    """An image file is missing, damaged or of another size than annotated; ``kind`` says which."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def read_image(index: AnnotationIndex, i: int) -> np.ndarray:
    """Image i (H, W, 3) uint8 RGB, in the orientation of its stored pixels.

    Raises:
        ImageError: missing, damaged, or of another size than its annotations say.
    """
    path = index.image_path(i)
    named = f"image {path} (id {index.image_ids[i]})"
    try:
        data = path.read_bytes()
    except OSError as error:
        message = f"{named} cannot be read: {error.strerror}; fetch the image again"
        raise ImageError("missing_image", message) from error
    image = None
    if not is_cut_off(data):
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
    if image is None:
        raise ImageError("broken_image", f"{named} is damaged and cannot be decoded; fetch the image again")
    height, width = int(index.heights[i]), int(index.widths[i])
    if image.shape[:2] != (height, width):
        found = f"{image.shape[1]} x {image.shape[0]}"
        raise ImageError(
            "wrong_image_size",
            f"{named} has {found} pixels, its annotations say {width} x {height}; correct width and height "
            "in the annotations, or store the image without EXIF rotation",
        )
    return image


def check_images(index: AnnotationIndex, threads: int = 4) -> dict[str, Defect]:
    """Decode every image of a split and count those that cannot be used, by kind."""
    log = DefectLog("skip")

    def problem(i: int) -> ImageError | None:
        try:
            read_image(index, i)
        except ImageError as error:
            return error
        return None

    with ThreadPoolExecutor(threads) as pool:
        for error in pool.map(problem, range(len(index))):
            if error is not None:
                log.report(error.kind, str(error), "fetch the image again")
    return log.defects


def is_cut_off(data: bytes) -> bool:
    """Whether the bytes of an image file stop too early: empty, or a JPEG or PNG without its end mark."""
    if data.startswith(_JPEG):
        # Compressed data never contains these marks; a preview in the header has its own before the last
        # scan.
        return data.rfind(_END_OF_JPEG) <= data.rfind(_START_OF_SCAN)
    if data.startswith(_PNG):
        return data.find(_END_OF_PNG) < 0
    return not data


def is_file_cut_off(path: Path) -> bool:
    """``is_cut_off`` of a file, reading no more than its ends where those show that it is whole."""
    with open(path, "rb") as file:
        head = file.read(len(_PNG))
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL))
        tail = file.read()
        end = {_JPEG: _END_OF_JPEG, _PNG[:2]: _END_OF_PNG}.get(head[:2])
        if end is None or end in tail:
            return size == 0
        file.seek(0)
        return is_cut_off(file.read())
