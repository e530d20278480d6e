"""Photos of a page with boxes over them."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np

PHOTO_SIDE = 480  # pixels; larger photos are shrunk to this side


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels of its photo.

    Attributes:
        style: CSS classes: the frequency group, and ``wrong`` for a detection without an object.
        note: its tooltip.
    """

    x: float
    y: float
    width: float
    height: float
    style: str
    note: str


def box(xyxy: np.ndarray, style: str, note: str) -> Box:
    """The box between two corners."""
    x1, y1, x2, y2 = xyxy.tolist()
    return Box(x1, y1, max(x2 - x1, 0.0), max(y2 - y1, 0.0), style, note)


@dataclass(frozen=True)
class View:
    """One showing of a photo: its id in the page, its size in pixels and the boxes over it."""

    photo: str
    width: int
    height: int
    boxes: list[Box]


class Photos:
    """The photos of a page. Each is stored once, however often it is shown.

    Attributes:
        stored: (id, width, height, data address) for the template ``photos``.
    """

    def __init__(self) -> None:
        self.stored: list[tuple[str, int, int, str]] = []
        self._known: dict[str, str] = {}

    def show(self, name: str, pixels: np.ndarray, boxes: Iterable[Box]) -> View:
        """Show the photo with this name in the page, (H, W, 3) uint8 RGB."""
        height, width = pixels.shape[:2]
        if name not in self._known:
            self._known[name] = f"photo{len(self._known)}"
            self.stored.append((self._known[name], width, height, data_uri(pixels)))
        return View(self._known[name], width, height, list(boxes))


def data_uri(pixels: np.ndarray) -> str:
    """(H, W, 3) uint8 RGB as a ``data:`` address: PNG if it is small, else JPEG of at most ``PHOTO_SIDE`` pixels."""
    scale = PHOTO_SIDE / max(pixels.shape[:2])
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in pixels.shape[1::-1])
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    small = pixels.size <= 3 * 128 * 128
    kind, mime = (".png", "image/png") if small else (".jpg", "image/jpeg")
    data = cv2.imencode(kind, pixels[..., ::-1])[1].tobytes()
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"
