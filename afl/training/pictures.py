"""Draws validation images with their objects and detections."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch

from afl.tracking import Picture
from afl.training.lettering import legible, size_of, write
from datasets import AnnotationIndex, read_image
from detectors.contract import Detections

TRUTH_COLOR, FOUND_COLOR, TEXT_COLOR = (60, 200, 60), (250, 120, 30), (255, 255, 255)
SIDE = 384
STRIP = 26  # height of the title and of the legend of a sheet
INK_COLOR = (30, 30, 40)
# Smaller images are enlarged to about this side before names are written over them.
LEGIBLE_SIDE = 600
# Okabe and Ito's palette, which is safe for colour-blind readers.
CLASS_COLORS = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (213, 94, 0),
    (86, 180, 233),
    (240, 228, 66),
)


def picture_of(index: AnnotationIndex, i: int, found: Detections | None = None) -> Picture:
    """Image ``i`` of a split with its objects and with detections in pixels of its file."""
    own = index.annotations(i)
    if found is None:
        found = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    return Picture(
        name=str(index.image_ids[i]),
        pixels=read_image(index, i),
        boxes=index.boxes[own],
        labels=index.labels[own],
        found_boxes=found.boxes.numpy(),
        found_scores=found.scores.float().numpy(),
        found_labels=found.labels.numpy(),
    )


def draw_picture(picture: Picture, names: Sequence[str], score_threshold: float = 0.3) -> np.ndarray:
    """Draw ground truth (green, left half) and detections with at least the threshold score (orange, right half).

    Names do not overlap: the best detections are placed first, and a name without a free place is left out.

    Returns:
        (SIDE, 2 * SIDE, 3) uint8 RGB.
    """
    scale = SIDE / max(picture.pixels.shape[:2])
    truth, found = _canvas(picture.pixels, scale), _canvas(picture.pixels, scale)
    objects = [legible(names[int(label)], int(label)) for label in picture.labels]
    _draw_all(truth, picture.boxes * scale, objects, TRUTH_COLOR)
    scores, labels = picture.found_scores, picture.found_labels
    best = [i for i in np.argsort(-scores, kind="stable") if scores[i] >= score_threshold]
    words = [f"{legible(names[int(labels[i])], int(labels[i]))} {float(scores[i]):.2f}" for i in best]
    _draw_all(found, picture.found_boxes[best] * scale, words, FOUND_COLOR)
    return np.concatenate([truth, found], 1)


def draw_found(pixels: np.ndarray, found: Detections, names: Sequence[str]) -> np.ndarray:
    """Draw all detections over their image, with one colour per class and the best detections on top.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        found: boxes in pixels of the image, by descending score.

    Returns:
        (H, W, 3) uint8 RGB; small images are enlarged by an integer factor, so that the names are legible.
    """
    factor = max(1, -(-LEGIBLE_SIDE // max(pixels.shape[:2])))
    canvas = cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    thickness = max(2, round(max(canvas.shape[:2]) / 500))
    labels = [int(label) for label in found.labels]
    words = [
        f"{legible(names[label], label)} {float(score):.2f}"
        for label, score in zip(labels, found.scores, strict=True)
    ]
    colors = [CLASS_COLORS[label % len(CLASS_COLORS)] for label in labels]
    _draw_all(canvas, found.boxes.numpy() * factor, words, colors, thickness)
    return canvas


def contact_sheet(
    pictures: Sequence[Picture], names: Sequence[str], title: str = "", columns: int = 2
) -> np.ndarray:
    """Arrange all pictures in one image, between a title and a legend.

    Returns:
        (STRIP + rows * height + STRIP, columns * 2 * SIDE, 3) uint8 RGB with ``columns`` pairs in a row, where height is the
        height of the tallest picture after its longer side is resized to SIDE.
    """
    height = max(round(SIDE * p.pixels.shape[0] / max(p.pixels.shape[:2])) for p in pictures)
    drawn = [draw_picture(picture, names)[: max(1, height)] for picture in pictures]
    while len(drawn) % columns:
        drawn.append(np.full_like(drawn[0], 255))
    rows = [np.concatenate(drawn[i : i + columns], 1) for i in range(0, len(drawn), columns)]
    top, bottom = (np.full((STRIP, rows[0].shape[1], 3), 255, np.uint8) for _ in range(2))
    write(top, title, (6, 4), 15, INK_COLOR)
    x = 6
    for color, text in (
        (TRUTH_COLOR, "left of each pair: the objects"),
        (FOUND_COLOR, "right: detections with a score of at least 0.30"),
    ):
        cv2.rectangle(bottom, (x, 7), (x + 12, 19), color, cv2.FILLED)
        write(bottom, text, (x + 18, 4), 14, INK_COLOR)
        x += 42 + size_of(text, 14)[0]
    return np.concatenate([top, *rows, bottom])


def draw_maps(
    picture: Picture, maps: dict[str, np.ndarray], names: Sequence[str], columns: int = 4
) -> np.ndarray:
    """Draw each score map of a detector's heads over the image, followed by ground truth and detections.

    Args:
        maps: (h, w) scores in [0, 1] by name, drawn from black (0) to white (1); the maximum is written below each map.

    Returns:
        (rows * height, columns * width, 3) uint8 RGB, the longer side of a tile's image being SIDE.
    """
    scale = SIDE / max(picture.pixels.shape[:2])
    height, width = (max(1, round(side * scale)) for side in picture.pixels.shape[:2])
    canvas = _canvas(picture.pixels, scale)[:height, :width]
    tiles = []
    for name, scores in maps.items():
        levels = (scores.clip(0, 1) * 255).astype(np.uint8)
        stretched = cv2.resize(levels, (width, height), interpolation=cv2.INTER_NEAREST)
        color = np.ascontiguousarray(cv2.applyColorMap(stretched, cv2.COLORMAP_INFERNO)[..., ::-1])
        tiles.append(
            _titled(cv2.addWeighted(canvas, 0.35, color, 0.65, 0), f"{name}, up to {float(scores.max()):.2f}")
        )
    pair = draw_picture(picture, names)
    tiles.append(_titled(pair[:height, :width], "ground truth"))
    tiles.append(_titled(pair[:height, SIDE : SIDE + width], "detections"))
    columns = min(columns, len(tiles))
    while len(tiles) % columns:
        tiles.append(np.full_like(tiles[0], 255))
    rows = [np.concatenate(tiles[i : i + columns], 1) for i in range(0, len(tiles), columns)]
    return np.concatenate(rows)


def _titled(tile: np.ndarray, title: str) -> np.ndarray:
    """The tile with a strip of text below it."""
    strip = np.zeros((18, tile.shape[1], 3), np.uint8)
    write(strip, title, (4, 2), 12, TEXT_COLOR)
    return np.concatenate([tile, strip])


def _canvas(pixels: np.ndarray, scale: float) -> np.ndarray:
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    canvas = np.full((SIDE, SIDE, 3), 255, np.uint8)
    canvas[:height, :width] = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return canvas


def _draw_all(
    canvas: np.ndarray,
    boxes: np.ndarray,
    words: Sequence[str],
    color: tuple[int, int, int] | Sequence[tuple[int, int, int]],
    thickness: int = 1,
) -> None:
    """Draw boxes (n, 4) and their labels, the most important first; the font size grows with the line thickness."""
    colors = [color] * len(words) if isinstance(color, tuple) else list(color)
    corners = [tuple(int(round(float(v))) for v in box) for box in boxes]
    for (x1, y1, x2, y2), one in reversed(list(zip(corners, colors, strict=True))):
        cv2.rectangle(canvas, (x1, y1), (x2, y2), one, thickness, cv2.LINE_AA)
    size = 5 + 5 * thickness
    taken: list[tuple[int, int, int, int]] = []
    for corner, text, one in zip(corners, words, colors, strict=True):
        width, height = size_of(text, size)
        place = _free_place(corner, width, height, canvas.shape[:2], taken)
        if place is None:
            continue
        x, y = place
        taken.append((x, y, x + width, y + height))
        cv2.rectangle(canvas, (x, y), (x + width, y + height), one, cv2.FILLED)
        ink = TEXT_COLOR if np.dot(one, (0.299, 0.587, 0.114)) < 150 else (0, 0, 0)
        write(canvas, text, (x, y), size, ink)


def _free_place(
    corner: tuple[int, ...],
    width: int,
    height: int,
    room: tuple[int, int],
    taken: Sequence[tuple[int, int, int, int]],
) -> tuple[int, int] | None:
    """The upper left corner of the first place for a label, above, below or inside its box, that overlaps no other label.

    Returns:
        (x, y), or None if every place is taken.
    """
    x1, y1, x2, y2 = corner
    for x in (x1, x2 - width):
        for y in (y1 - height, y2, y1, y2 - height):
            x, y = min(max(0, x), max(0, room[1] - width)), min(max(0, y), max(0, room[0] - height))
            if all(
                x + width <= left or right <= x or y + height <= top or bottom <= y
                for left, top, right, bottom in taken
            ):
                return x, y
    return None
