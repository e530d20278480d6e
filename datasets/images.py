"""Decode image files, or say why they cannot be used.

Every caller uses the same rules: the check before a run, training, evaluation and prediction.  The header is read first,
so that a file of the wrong size is refused before its pixels take memory.  OpenCV decodes a JPEG that was cut off
without complaint and leaves the rest grey; here that is an error.
"""

from __future__ import annotations

import io
import os
import re
import stat
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from datasets.errors import DataError
from datasets.index import AnnotationIndex

# The formats that OpenCV decodes and that image lists without suffixes may mean.
IMAGE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".png",
    ".bmp",
    ".webp",
    ".tif",
    ".tiff",
    ".gif",
    ".jp2",
    ".ppm",
    ".pgm",
    ".pbm",
)

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG"
_ORIENTATION = 0x0112
_END_OF_JPEG, _END_OF_PNG = b"\xff\xd9", b"IEND"
# Within compressed data, byte 255 is followed by 0 or by a restart mark (D0 to D7); everything else is a marker.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")

# Pillow warns of images that are large enough to be an attack; here the size is compared with the annotations.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class ImageError(DataError):
    """An image file is missing, damaged or of another size than annotated; ``kind`` says which.

    Attributes:
        kind: ``missing_image``, ``broken_image`` or ``wrong_image_size``.
        remedy: how to repair it.
    """

    def __init__(self, kind: str, what: str, remedy: str) -> None:
        super().__init__(f"{what}; {remedy}")
        self.kind, self.what, self.remedy = kind, what, remedy


def read_image(index: AnnotationIndex, i: int) -> np.ndarray:
    """Image i (H, W, 3) uint8 RGB, in the orientation of its stored pixels.

    Raises:
        ImageError: the file is missing, damaged, or of another size than its annotations say.
    """
    named = f"image {index.image_path(i)} (id {index.image_ids[i]})"
    data = _bytes_of(index.image_path(i), named)
    annotated = int(index.widths[i]), int(index.heights[i])
    found = _header_size(data)
    if found is not None and found != annotated:
        raise ImageError(
            "wrong_image_size",
            f"{named} has {found[0]} x {found[1]} pixels, its annotations say {annotated[0]} x {annotated[1]}",
            "correct width and height in the annotations, or store the image without EXIF rotation",
        )
    image = _decode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION) if found else None
    if image is None or image.shape[1::-1] != annotated:
        raise ImageError("broken_image", f"{named} is damaged and cannot be decoded", "fetch the image again")
    return image


def read_image_file(path: Path) -> np.ndarray:
    """Any image file as people see it (H, W, 3) uint8 RGB, rotated as its EXIF orientation says.

    Raises:
        ImageError: the file is missing, is not an image, is damaged, or has more than 179 million pixels.
    """
    data = _bytes_of(path, str(path))
    image = _decode(data, cv2.IMREAD_COLOR_RGB) if _header_size(data) else None
    if image is None:
        raise ImageError(
            "broken_image",
            f"{path} is not an image that can be decoded, or is cut off",
            "fetch the image again",
        )
    return image


def read_header(path: Path) -> tuple[int, int, int] | None:
    """Width, height and EXIF orientation (1: not rotated) of an image file, of which only the header is read.

    None if the path is not a regular file or not an image.
    """
    try:
        if not path.is_file():
            return None
        with Image.open(path) as header:
            # To look for EXIF data behind the pixels of a PNG, Pillow would decode it.
            known = header.format != "PNG" or "exif" in header.info
            return *header.size, int(header.getexif().get(_ORIENTATION, 1)) if known else 1
    except Exception:  # Pillow's plugins raise almost anything for damaged headers
        return None


def _bytes_of(path: Path, named: str) -> bytes:
    """Content of a regular file; reading a pipe or a device could wait forever."""
    try:
        # Without O_NONBLOCK, opening a pipe that nobody writes to would wait.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ImageError(
                    "broken_image", f"{named} is not a regular file", "put an image file in its place"
                )
            return file.read()
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise ImageError(
            "missing_image", f"{named} cannot be read: {reason}", "fetch the image again"
        ) from error


def _header_size(data: bytes) -> tuple[int, int] | None:
    """Width and height as an image file's header says; None if it is not an image or has too many pixels."""
    try:
        with Image.open(io.BytesIO(data)) as header:
            return header.size
    except Exception:  # Pillow's plugins raise almost anything for damaged headers
        return None


def _decode(data: bytes, flags: int) -> np.ndarray | None:
    """Pixels of an image file; None if it is not an image or is cut off."""
    if is_cut_off(data):
        return None
    try:
        return cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
    except cv2.error:  # more pixels than OpenCV allocates memory for
        return None


def is_cut_off(data: bytes) -> bool:
    """Whether the content of an image file is empty, or a JPEG or PNG without its end mark."""
    if data.startswith(_JPEG):
        return not _has_end_of_jpeg(data)
    if data.startswith(_PNG):
        return data.find(_END_OF_PNG) < 0
    # Shorter than its own signature, or empty.
    return _JPEG.startswith(data) or _PNG.startswith(data)


def _has_end_of_jpeg(data: bytes) -> bool:
    """Follow the segments of a JPEG to its end mark, whose bytes may also occur inside a segment."""
    position = len(_JPEG)
    while marker := _MARKER.search(data, position):
        if marker.group() == _END_OF_JPEG:
            return True
        # Every other marker is followed by the length of its segment.
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return False
