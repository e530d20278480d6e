"""Decode image files, with one error for each reason why a file cannot be used.

All callers share these rules: the check before a run, training, evaluation and prediction.  The header is read first, so
that a file of the wrong size is refused before its pixels take memory.  OpenCV decodes a truncated JPEG without an error and
leaves the rest grey; here it is an error.  Samples of 16 bits become 8 bits by OpenCV's rule, a division by 256 whatever range
they use.  Wider samples and floating point have no such rule and are refused.
"""

from __future__ import annotations

import io
import os
import re
import stat
import warnings
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin

from datasets.errors import DataError, reason
from datasets.index import AnnotationIndex

# Suffixes of the formats that OpenCV decodes; image lists without suffixes may refer to any of them.
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

# Pillow reads no image with more pixels.
TOO_MANY_PIXELS, SMALLER_IMAGES = "has more than 179 million pixels", "divide it into smaller images"

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG"
_TIFF = b"II*\0", b"MM\0*"
_ORIENTATION = 0x0112
_FLOAT = 3  # SampleFormat of a TIFF
_END_OF_JPEG, _END_OF_PNG = b"\xff\xd9", b"IEND"
# In compressed data, byte 255 is followed by 0 or by a restart mark (D0 to D7). Any other pair is a marker.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")

# Pillow warns of very large images, which could be an attack. Here the size is compared with the annotations.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class ImageError(DataError):
    """An image file is missing, damaged, or of another size than annotated.

    Attributes:
        kind: ``missing_image``, ``broken_image``, ``rotated_image`` or ``wrong_image_size``.
        remedy: how to repair it.
    """

    def __init__(self, kind: str, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}; {remedy}")
        self.kind, self.problem, self.remedy = kind, problem, remedy


def read_image(index: AnnotationIndex, i: int) -> np.ndarray:
    """Image i (H, W, 3) uint8 RGB, in the orientation of its stored pixels.

    Raises:
        ImageError: the file is missing, damaged, a TIFF with a rotation, or of another size than its annotations say.
    """
    named = f"image {index.image_path(i)} (id {index.image_ids[i]})"
    data = _bytes_of(index.image_path(i), named)
    if _is_rotated_tiff(data):
        # OpenCV rotates TIFF images in spite of IMREAD_IGNORE_ORIENTATION.
        raise ImageError(
            "rotated_image",
            f"{named} is a TIFF with an EXIF rotation, whose stored pixels cannot be read",
            "store the image without EXIF rotation",
        )
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
        _refuse_unsupported(data, named)
        raise ImageError("broken_image", f"{named} is damaged and cannot be decoded", "fetch the image again")
    return image


def read_image_file(path: Path) -> np.ndarray:
    """An image file as viewers show it (H, W, 3) uint8 RGB, rotated according to its EXIF orientation.

    Raises:
        ImageError: the file is missing, is not an image, is damaged, or has more than 179 million pixels.
    """
    data = _bytes_of(path, str(path))
    image = _decode(data, cv2.IMREAD_COLOR_RGB) if _header_size(data) else None
    if image is None:
        _refuse_unsupported(data, str(path))
        raise ImageError(
            "broken_image",
            f"{path} is not an image that can be decoded, or is cut off",
            "fetch the image again",
        )
    return image


def read_header(file: Path | BinaryIO) -> tuple[int, int, int] | None:
    """Width, height and EXIF orientation (1: not rotated) from the header of an image.

    None if the file is not a regular one or not an image.
    """
    try:
        if isinstance(file, Path) and not file.is_file():
            return None
        with Image.open(file) as header:
            # In a PNG, EXIF data may follow the pixels; Pillow would decode the image to find it.
            known = header.format != "PNG" or "exif" in header.info
            return *header.size, int(header.getexif().get(_ORIENTATION, 1)) if known else 1
    except Exception:  # Pillow's plugins raise almost anything for damaged headers
        return None


def has_too_many_pixels(file: Path | BinaryIO) -> bool:
    """Whether the header of an image file states more pixels than are read."""
    try:
        Image.open(file).close()
    except Image.DecompressionBombError:
        return True
    except Exception:  # Pillow's plugins raise almost anything for damaged headers
        return False
    return False


def _bytes_of(path: Path, named: str) -> bytes:
    """Content of a regular file. Other files are refused: reading a pipe or a device could wait forever."""
    try:
        # Without O_NONBLOCK, opening a pipe without a writer would wait.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ImageError(
                    "broken_image", f"{named} is not a regular file", "put an image file in its place"
                )
            return file.read()
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(
            "missing_image", f"{named} cannot be read: {reason(error)}", "fetch the image again"
        ) from error


def _header_size(data: bytes) -> tuple[int, int] | None:
    """Width and height from the header of an image file; None if it is not an image or has too many pixels."""
    try:
        with Image.open(io.BytesIO(data)) as header:
            return header.size
    except Exception:  # Pillow's plugins raise almost anything for damaged headers
        return None


def _is_rotated_tiff(data: bytes) -> bool:
    header = read_header(io.BytesIO(data)) if data.startswith(_TIFF) else None
    return header is not None and header[2] in range(2, 9)


def _refuse_unsupported(data: bytes, named: str) -> None:
    """Raise the reason why a complete file is not decoded, if it is the number of its pixels or the type of its samples."""
    if has_too_many_pixels(io.BytesIO(data)):
        raise ImageError("broken_image", f"{named} {TOO_MANY_PIXELS}", SMALLER_IMAGES)
    if _has_wide_samples(data):
        raise ImageError(
            "broken_image",
            f"{named} has samples of 32 bits or of floating point, which are not supported",
            "convert it to 8 bits per sample",
        )


def _has_wide_samples(data: bytes) -> bool:
    """Whether a file is a TIFF with samples of floating point or of more than 16 bits."""
    if not data.startswith(_TIFF):
        return False
    try:
        tags, file = TiffImagePlugin.ImageFileDirectory_v2(data[:8]), io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        bits, kinds = tags.get(TiffImagePlugin.BITSPERSAMPLE, ()), tags.get(TiffImagePlugin.SAMPLEFORMAT, ())
        return max(bits, default=1) > 16 or _FLOAT in kinds
    except Exception:  # Pillow's plugins raise almost anything for damaged headers
        return False


def _decode(data: bytes, flags: int) -> np.ndarray | None:
    """Pixels of an image file; None if it is not an image or is truncated."""
    if is_cut_off(data):
        return None
    try:
        return cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
    except cv2.error:  # more pixels than OpenCV allocates memory for
        return None


def is_cut_off(data: bytes) -> bool:
    """Whether an image file is truncated: it is empty, or a JPEG or PNG without an end mark."""
    if data.startswith(_JPEG):
        return not _has_end_of_jpeg(data)
    if data.startswith(_PNG):
        return data.find(_END_OF_PNG) < 0
    # The content is empty, or shorter than a signature.
    return _JPEG.startswith(data) or _PNG.startswith(data)


def _has_end_of_jpeg(data: bytes) -> bool:
    """Follow the segments of a JPEG to its end mark; the bytes of the mark may also occur inside a segment."""
    position = len(_JPEG)
    while marker := _MARKER.search(data, position):
        if marker.group() == _END_OF_JPEG:
            return True
        # Every other marker is followed by the length of its segment.
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return False
