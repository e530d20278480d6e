"""Image files: decoded, or said to be broken.

OpenCV decodes a JPEG that was cut off without complaint and leaves the rest grey; here that is an error.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from datasets.defects import Defect, DefectLog
from datasets.errors import DataError
from datasets.index import AnnotationIndex

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG"
_END_OF_JPEG, _END_OF_PNG = b"\xff\xd9", b"IEND"
# Within compressed data a byte 255 is followed by 0 or by a restart mark, D0 to D7; anything else is a
# marker.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
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
    image = _decode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
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


def read_image_file(path: Path) -> np.ndarray:
    """Any image file as people see it (H, W, 3) uint8 RGB, turned as its EXIF orientation says.

    Raises:
        ImageError: missing, not an image, or damaged.
    """
    try:
        image = _decode(path.read_bytes(), cv2.IMREAD_COLOR_RGB)
    except OSError as error:
        raise ImageError("missing_image", f"{path} cannot be read: {error.strerror}") from error
    if image is None:
        raise ImageError("broken_image", f"{path} is not an image that can be decoded, or is cut off")
    return image


def _decode(data: bytes, flags: int) -> np.ndarray | None:
    """Pixels of an image file's bytes; None where they are no image or stop too early."""
    if is_cut_off(data):
        return None
    try:
        return cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
    except cv2.error:  # the header names more pixels than OpenCV makes room for
        return None


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
        return not _has_end_of_jpeg(data)
    if data.startswith(_PNG):
        return data.find(_END_OF_PNG) < 0
    # Shorter than its own signature, or empty.
    return _JPEG.startswith(data) or _PNG.startswith(data)


def _has_end_of_jpeg(data: bytes) -> bool:
    """Follow the segments of a JPEG to its end mark; the bytes of that mark may also occur inside a
    segment."""
    position = len(_JPEG)
    while marker := _MARKER.search(data, position):
        if marker.group() == _END_OF_JPEG:
            return True
        # Every other marker is followed by the length of its segment.
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return False


def is_file_cut_off(path: Path) -> bool:
    """``is_cut_off`` of a file, reading only the ends of a large one where those show that it is whole."""
    with open(path, "rb") as file:
        head = file.read(len(_PNG))
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL))
        tail = file.read()
        end = _END_OF_JPEG if head.startswith(_JPEG) else _END_OF_PNG
        if size > _TAIL and end in tail:
            return False
        file.seek(0)
        return is_cut_off(file.read())
