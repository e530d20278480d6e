"""Validation images with what is there and what was found, for people."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from afl.tracking import Picture

TRUTH_COLOR, FOUND_COLOR, TEXT_COLOR = (60, 200, 60), (250, 120, 30), (255, 255, 255)
SIDE = 384


def draw_picture(picture: Picture, names: Sequence[str], score_threshold: float = 0.3) -> np.ndarray:
    """Ground truth (green, left half) beside detections above the threshold (orange, right half).

    Returns:
        (SIDE, 2 * SIDE, 3) uint8 RGB.
    """
    scale = SIDE / max(picture.pixels.shape[:2])
    truth, found = _canvas(picture.pixels, scale), _canvas(picture.pixels, scale)
    for box, label in zip(picture.boxes, picture.labels, strict=True):
        _draw(truth, box * scale, names[int(label)], TRUTH_COLOR)
    for box, score, label in zip(picture.found_boxes, picture.found_scores, picture.found_labels, strict=True):
        if score >= score_threshold:
            _draw(found, box * scale, f"{names[int(label)]} {float(score):.2f}", FOUND_COLOR)
    return np.concatenate([truth, found], 1)


def contact_sheet(pictures: Sequence[Picture], names: Sequence[str], columns: int = 2) -> np.ndarray:
    """All pictures in one image, ``columns`` pairs beside each other: (rows * SIDE, columns * 2 * SIDE, 3) RGB."""
    drawn = [draw_picture(picture, names) for picture in pictures]
    while len(drawn) % columns:
        drawn.append(np.full_like(drawn[0], 255))
    rows = [np.concatenate(drawn[i : i + columns], 1) for i in range(0, len(drawn), columns)]
    return np.concatenate(rows)


def _canvas(pixels: np.ndarray, scale: float) -> np.ndarray:
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    canvas = np.full((SIDE, SIDE, 3), 255, np.uint8)
    canvas[:height, :width] = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return canvas


def _draw(canvas: np.ndarray, box: np.ndarray, text: str, color: tuple[int, int, int]) -> None:
    x1, y1, x2, y2 = (int(round(float(v))) for v in box)
    cv2.rectangle(canvas, (x1, y1), (x2, y2), color, 1, cv2.LINE_AA)
    (width, height), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.32, 1)
    x, y = min(max(x1, 0), SIDE - width), max(y1, height + base)
    cv2.rectangle(canvas, (x, y - height - base), (x + width, y), color, cv2.FILLED)
    cv2.putText(canvas, text, (x, y - base + 1), cv2.FONT_HERSHEY_SIMPLEX, 0.32, TEXT_COLOR, 1, cv2.LINE_AA)
