"""Draws text into pictures, in any alphabet that an installed font supports."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont


def legible(name: str, label: int) -> str:
    """``name``, or the number of the class if no font has its letters."""
    return name if name.isprintable() and name.strip() and _font_file(name) is not None else str(label)


def size_of(text: str, height: int) -> tuple[int, int]:
    """(width, height) in pixels of the strip that :func:`write` fills."""
    font = _font(text, height)
    ascent, descent = font.getmetrics()
    return max(1, round(font.getlength(text))), ascent + descent


def write(
    canvas: np.ndarray, text: str, corner: tuple[int, int], height: int, ink: tuple[int, int, int]
) -> None:
    """Write a line of text into ``canvas``, in place; text outside the canvas is cut off.

    Args:
        canvas: (H, W, 3) uint8 RGB.
        corner: (x, y) of the text's upper left corner, in pixels of the canvas.
        height: of the font, in pixels.
    """
    width, rows = size_of(text, height)
    strip = Image.new("L", (width, rows))
    ImageDraw.Draw(strip).text((0, 0), text, fill=255, font=_font(text, height))
    x, y = corner
    left, top = max(0, -x), max(0, -y)
    place = canvas[max(0, y) : max(0, y + rows), max(0, x) : max(0, x + width)]
    cover = (
        np.asarray(strip, np.float32)[top : top + place.shape[0], left : left + place.shape[1], None] / 255
    )
    place[...] = np.rint(place * (1 - cover) + np.array(ink, np.float32) * cover).astype(np.uint8)


def _font(text: str, height: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(_font_file(text) or _dejavu()), height)


@functools.cache
def _dejavu() -> Path:
    """Matplotlib's font, which is the same on every machine and covers Latin, Greek, Cyrillic, Arabic and more."""
    import matplotlib  # slow, and most commands draw nothing

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


@functools.cache
def _font_file(text: str) -> Path | None:
    """A font with all letters of ``text``; None if no such font is installed."""
    from matplotlib.font_manager import findSystemFonts

    needed = {ord(letter) for letter in text if not letter.isspace()}
    if needed <= _letters(_dejavu()):
        return _dejavu()
    return next((path for path in map(Path, sorted(findSystemFonts())) if needed <= _letters(path)), None)


@functools.cache
def _letters(path: Path) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(str(path)).get_charmap())
    except (OSError, RuntimeError):  # not a font
        return frozenset()
