"""The detections in one image, as plain values for a page in a browser."""

from __future__ import annotations

import base64
import time
from typing import Any

import cv2
import numpy as np

from afl.predict import Predictor

LOWEST_SCORE = 0.05  # of the boxes that the page gets; its slider goes down to this


def shown(predictor: Predictor, pixels: np.ndarray) -> dict[str, Any]:
    """Boxes, scores, class names and score maps of an image.

    Args:
        pixels: (H, W, 3) uint8 RGB.

    Returns:
        ``boxes`` (xyxy in pixels of the image), ``scores`` and ``labels`` by falling score; ``names`` and ``groups`` of the labels;
        ``milliseconds``; ``maps``: name, highest value and a picture (data URI) of each score map.
    """
    started = time.perf_counter()
    found = predictor(pixels, score=LOWEST_SCORE)
    milliseconds = 1000 * (time.perf_counter() - started)
    labels = found.labels.tolist()
    return {
        "boxes": found.boxes.tolist(),
        "scores": found.scores.tolist(),
        "labels": labels,
        "names": [predictor.names[label] for label in labels],
        "groups": [predictor.groups[label] for label in labels],
        "milliseconds": milliseconds,
        "maps": [
            {"name": name, "highest": float(scores.max()), "picture": _picture(scores)}
            for name, scores in predictor.score_maps(pixels).items()
        ],
    }


def _picture(scores: np.ndarray) -> str:
    """A map in colours, one pixel a cell: black is 0, yellow 1."""
    levels = (scores.clip(0, 1) * 255).astype(np.uint8)
    data = cv2.imencode(".png", cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO))[1].tobytes()
    return "data:image/png;base64," + base64.b64encode(data).decode()
