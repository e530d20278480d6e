"""Drawing of LongTail Shapes: outlines, fills, and scenes of occluding objects on a cluttered background.

The outline and the fill of an object together are its class.  An outline is an exact polygon.  It is drawn at four times
its size and reduced by averages, so that box and image agree to a fraction of a pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from datasets.geometry import clip_polygon, polygon_area

SUPERSAMPLING = 4


def _arc(
    start: float, stop: float, count: int, radius: float = 1.0, x: float = 0.0
) -> list[tuple[float, float]]:
    angles = np.linspace(start, stop, count)
    return [(x + radius * np.cos(a), radius * np.sin(a)) for a in angles]


def _spikes(count: int, inner: float) -> list[tuple[float, float]]:
    """A star with ``count`` points: vertices alternate between radius 1 and ``inner``."""
    angles = np.arange(2 * count) * np.pi / count
    radii = np.where(np.arange(2 * count) % 2 == 0, 1.0, inner)
    return list(zip(radii * np.cos(angles), radii * np.sin(angles), strict=True))


def _cog() -> list[tuple[float, float]]:
    points = []
    for tooth in range(7):
        middle = 2 * np.pi * tooth / 7
        for offset, radius in ((-0.34, 0.66), (-0.22, 1.0), (0.22, 1.0), (0.34, 0.66)):
            points.append((radius * np.cos(middle + offset), radius * np.sin(middle + offset)))
    return points


def _drop() -> list[tuple[float, float]]:
    return [(1.0, 0.0), *_arc(np.pi / 3, 5 * np.pi / 3, 18, radius=0.62, x=-0.36)]


OUTLINES: dict[str, np.ndarray] = {
    name: np.asarray(points, dtype=np.float64)
    for name, points in {
        "circle": _arc(0, 2 * np.pi * 35 / 36, 36, radius=0.92),
        "square": [(-0.74, -0.74), (0.74, -0.74), (0.74, 0.74), (-0.74, 0.74)],
        "triangle": _arc(0, 4 * np.pi / 3, 3, radius=1.08),
        "star": _spikes(5, 0.42),
        "cross": [
            (-0.33, -1), (0.33, -1), (0.33, -0.33), (1, -0.33), (1, 0.33), (0.33, 0.33),
            (0.33, 1), (-0.33, 1), (-0.33, 0.33), (-1, 0.33), (-1, -0.33), (-0.33, -0.33),
        ],
        "crescent": [*_arc(0.9, 5.383, 26), *_arc(4.93, 1.353, 20, radius=0.8, x=0.45)],
        "ellipse": [(x, 0.52 * y) for x, y in _arc(0, 2 * np.pi * 35 / 36, 36)],
        "bar": [(-1, -0.27), (1, -0.27), (1, 0.27), (-1, 0.27)],
        "pentagon": _arc(0, 8 * np.pi / 5, 5),
        "arrow": [(1, 0), (0.15, 0.8), (0.15, 0.3), (-1, 0.3), (-1, -0.3), (0.15, -0.3), (0.15, -0.8)],
        "tee": [
            (-0.85, -0.9), (0.85, -0.9), (0.85, -0.32), (0.3, -0.32),
            (0.3, 0.95), (-0.3, 0.95), (-0.3, -0.32), (-0.85, -0.32),
        ],
        "cog": _cog(),
        "semicircle": _arc(-np.pi / 2, np.pi / 2, 20, x=-0.35),
        "hourglass": [(-0.75, -0.9), (0.75, -0.9), (0.16, 0), (0.75, 0.9), (-0.75, 0.9), (-0.16, 0)],
        "aitch": [
            (-0.8, -0.85), (-0.3, -0.85), (-0.3, -0.25), (0.3, -0.25), (0.3, -0.85), (0.8, -0.85),
            (0.8, 0.85), (0.3, 0.85), (0.3, 0.25), (-0.3, 0.25), (-0.3, 0.85), (-0.8, 0.85),
        ],
        "chevron": [(-0.9, -0.85), (-0.2, -0.85), (0.85, 0), (-0.2, 0.85), (-0.9, 0.85), (0.05, 0)],
        "bolt": [(0.25, -1), (-0.7, 0.15), (-0.1, 0.15), (-0.25, 1), (0.7, -0.2), (0.1, -0.2)],
        "drop": _drop(),
    }.items()
}  # fmt: skip

_PLAIN = {
    "red": (208, 48, 44),
    "blue": (48, 78, 208),
    "green": (48, 164, 66),
    "yellow": (226, 204, 52),
    "cyan": (56, 200, 208),
    "purple": (150, 62, 190),
    "white": (236, 236, 236),
}

# Whether a point has the light tone. (u, v) is its position in pixels from the object's centre along the object's axes, p
# is the phase.
_PATTERNS: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "stripes": lambda u, v, p: (u / 5.0 + p) % 1 < 0.5,
    "dots": lambda u, v, p: np.hypot((u / 5.5 + p) % 1 - 0.5, (v / 5.5 + p) % 1 - 0.5) > 0.31,
    "checker": lambda u, v, p: (np.floor(u / 4.0 + p) + np.floor(v / 4.0 + p)) % 2 == 0,
    "rings": lambda u, v, p: (np.hypot(u, v) / 5.0 + p) % 1 < 0.5,
    "halves": lambda u, v, p: u > 0,
    "zigzag": lambda u, v, p: (u / 6.0 + p + np.abs((v / 7.0) % 1 - 0.5)) % 1 < 0.5,
}

FILLS = (*_PLAIN, *_PATTERNS)


@dataclass(frozen=True)
class DrawnObject:
    """One object of a scene: its class, and the part of its outline inside the image as a polygon (n, 2) float64."""

    label: int
    polygon: np.ndarray


@dataclass(frozen=True)
class SceneStyle:
    """Settings that all scenes of a data set share.

    Attributes:
        image_size: side of the square images in pixels.
        min_radius, max_radius: range of the objects' circumscribed radius in pixels.
        max_hidden: largest share of an object that other objects or the image border may hide.
    """

    image_size: int
    min_radius: float
    max_radius: float
    max_hidden: float


def draw_scene(
    labels: Sequence[int], looks: Sequence[tuple[str, str]], style: SceneStyle, rng: np.random.Generator
) -> tuple[np.ndarray, list[DrawnObject]]:
    """Draw one object of each label; later objects cover earlier ones.

    No object hides more than ``max_hidden`` of another one, or a point where the other one touches its box, so every box is
    tight around the visible part.

    Args:
        labels: class number of each object.
        looks: (outline, fill) of each class.
        style: sizes and occlusion limit.
        rng: generator of all random numbers.

    Returns:
        RGB image (S, S, 3) uint8 and its objects, in drawing order.

    Raises:
        ValueError: the objects do not fit into the image.
    """
    for _ in range(50):
        placed = _place(labels, looks, style, rng)
        if placed is not None:
            break
    else:
        raise ValueError(
            f"{len(labels)} objects of radius up to {style.max_radius} px do not fit into "
            f"{style.image_size} px: use larger images, smaller radii or fewer objects per image"
        )
    image = _background(style.image_size, rng)
    objects = []
    for label, polygon, angle in placed:
        _paint(image, polygon, angle, looks[label][1], rng)
        objects.append(DrawnObject(label, clip_polygon(polygon, style.image_size, style.image_size)))
    image += rng.normal(0.0, 5.0, image.shape).astype(np.float32)
    return np.clip(image, 0, 255).astype(np.uint8), objects


def _place(
    labels: Sequence[int], looks: Sequence[tuple[str, str]], style: SceneStyle, rng: np.random.Generator
) -> list[tuple[int, np.ndarray, float]] | None:
    """Label, outline and angle of each object, or None if an object found no room in 60 attempts."""
    size = style.image_size
    placed: list[tuple[int, np.ndarray, float]] = []
    visible: list[np.ndarray] = []
    full: list[tuple[int, tuple[int, ...]]] = []
    for label in labels:
        for _ in range(60):
            angle = rng.uniform(0, 2 * np.pi)
            polygon = _random_outline(looks[label][0], angle, style, rng)
            inside = clip_polygon(polygon, size, size)
            if len(inside) < 3 or polygon_area(inside) < (1 - style.max_hidden) * polygon_area(polygon):
                continue
            mask = _coverage(polygon, (0, 0, size, size), scale=1) > 0
            remaining = [earlier & ~mask for earlier in visible]
            if all(
                _well_visible(part, *of, style.max_hidden) for part, of in zip(remaining, full, strict=True)
            ):
                visible = [*remaining, mask]
                full.append((int(mask.sum()), _mask_box(mask)))
                placed.append((label, polygon, angle))
                break
        else:
            return None
    return placed


def _random_outline(name: str, angle: float, style: SceneStyle, rng: np.random.Generator) -> np.ndarray:
    radius = rng.uniform(style.min_radius, style.max_radius)
    stretch = rng.uniform(0.87, 1.0, size=2)
    cos, sin = np.cos(angle), np.sin(angle)
    rotation = np.array([[cos, -sin], [sin, cos]])
    margin = 0.5 * radius
    centre = rng.uniform(margin, style.image_size - margin, size=2)
    return radius * (OUTLINES[name] * stretch) @ rotation.T + centre


def _well_visible(part: np.ndarray, area: int, box: tuple[int, ...], max_hidden: float) -> bool:
    count = int(part.sum())
    if count == area:
        return True
    return count >= (1 - max_hidden) * area and _mask_box(part) == box


def _mask_box(mask: np.ndarray) -> tuple[int, ...]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def _coverage(polygon: np.ndarray, window: tuple[int, int, int, int], scale: int) -> np.ndarray:
    """Filled polygon on the window (x1, y1, x2, y2), uint8 0 or 255, with ``scale`` samples per pixel and axis."""
    x1, y1, x2, y2 = window
    canvas = np.zeros(((y2 - y1) * scale, (x2 - x1) * scale), dtype=np.uint8)
    # In fillPoly, the centre of the first sample is at 0; here it is at half a sample. 4 fractional bits keep the part
    # below one sample.
    points = np.rint(((polygon - (x1, y1)) * scale - 0.5) * 16).astype(np.int32)
    cv2.fillPoly(canvas, [points], 255, lineType=cv2.LINE_8, shift=4)
    return canvas


def _paint(image: np.ndarray, polygon: np.ndarray, angle: float, fill: str, rng: np.random.Generator) -> None:
    size = image.shape[0]
    x1, y1 = np.maximum(np.floor(polygon.min(axis=0)).astype(int) - 1, 0)
    x2, y2 = np.minimum(np.ceil(polygon.max(axis=0)).astype(int) + 1, size)
    alpha = _coverage(polygon, (x1, y1, x2, y2), SUPERSAMPLING)
    alpha = (
        cv2.resize(alpha, (int(x2 - x1), int(y2 - y1)), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    )
    centre = polygon.mean(axis=0)
    y, x = np.mgrid[y1:y2, x1:x2].astype(np.float32) + 0.5
    x, y = x - centre[0], y - centre[1]
    cos, sin = np.cos(angle), np.sin(angle)
    u, v = cos * x + sin * y, cos * y - sin * x
    colour = _fill(fill, u, v, rng)
    light = rng.uniform(0, 2 * np.pi)
    shade = rng.uniform(0.82, 1.1) * (1 + 0.012 * (np.cos(light) * x + np.sin(light) * y))
    patch = image[y1:y2, x1:x2]
    patch += alpha[..., None] * (colour * shade[..., None] - patch)


def _fill(name: str, u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Colours (h, w, 3) float32 of a fill at the positions (u, v), in pixels along the object's axes."""
    jitter = rng.uniform(-16, 16, size=(2, 3))
    if name in _PLAIN:
        return np.broadcast_to(np.asarray(_PLAIN[name]) + jitter[0], (*u.shape, 3)).astype(np.float32)
    light = _PATTERNS[name](u, v, rng.uniform())
    return np.where(light[..., None], 222 + jitter[0], 42 + jitter[1]).astype(np.float32)


def _background(size: int, rng: np.random.Generator) -> np.ndarray:
    """An image (S, S, 3) float32 of colour clouds, with strokes and fragments smaller than any object."""
    image = np.full((size, size, 3), rng.uniform(90, 160), dtype=np.float32)
    for cells, amplitude in ((5, 30.0), (size // 5, 12.0)):
        noise = rng.normal(0.0, amplitude, (cells, cells, 3)).astype(np.float32)
        image += cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
    for _ in range(rng.integers(10, 19)):
        colour = rng.uniform(20, 235, size=3).tolist()
        start = rng.uniform(0, size, size=2)
        if rng.random() < 0.6:
            stop = start + rng.normal(0, 14, size=2)
            first, last = (end.astype(int).tolist() for end in (start, stop))
            cv2.line(image, first, last, colour, int(rng.integers(1, 3)), cv2.LINE_AA)
        else:
            scrap = start + rng.uniform(-3.5, 3.5, size=(3, 2))
            cv2.fillPoly(image, [np.rint(scrap).astype(np.int32)], colour, lineType=cv2.LINE_AA)
    return image
