"""Geometric and colour transforms of samples.

The geometry of a transform is one affine matrix (2, 3) from pixels of the file to pixels of the network input, composed of
scale, shift, mirror and transpose.  It is applied once to image, boxes, outlines and extreme points.  The sample keeps it,
so that detections can be mapped back.

A transform is a function ``transform(sample, rng, shared)`` from an untransformed sample to a new one.  ``rng`` is the
generator of the sample.  ``shared`` is a generator with the same state for all samples of a batch; without it, ``rng``
draws the shared numbers too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from datasets.batch import PAD_COLOR, Polygons, ResizedImage, Sample
from datasets.color import ColorJitter
from datasets.extreme_points import extreme_points_of_polygons
from datasets.geometry import clip_polygon, longest_chord, transform_boxes, transform_points

# Training drops objects with a side of less than a pixel after a transform.
SMALLEST_SIDE = 1.0

# Outward directions of the extreme points' sides: top, left, bottom, right.
_SIDES = np.array([(0, -1), (-1, 0), (0, 1), (1, 0)])


@dataclass
class ResizeTransform:
    """Training of dense heads: resize the short side to a random length, mirror, recolour.

    All images of a batch get the same short side, so that they need little padding.

    Args:
        short_sides: possible lengths in pixels.
        max_long_side: upper limit of the long side in pixels.
        flip: probability of mirroring left to right.
        color: colour change, or None.
    """

    short_sides: Sequence[int]
    max_long_side: int
    flip: float = 0.5
    color: ColorJitter | None = None

    def __call__(
        self, sample: Sample, rng: np.random.Generator, shared: np.random.Generator | None = None
    ) -> Sample:
        short_side = self.short_sides[int((shared or rng).integers(len(self.short_sides)))]
        mirrored = rng.random() < self.flip
        image = _recoloured(sample, self.color, rng)
        return _resized(replace(sample, image=image), short_side, self.max_long_side, mirrored, SMALLEST_SIDE)


@dataclass
class CropTransform:
    """Training of heat-map heads: a random square of the image at a fixed size (Zhou et al. 2019, CenterNet).

    The side of the square is the image's long side times a random factor.  Its centre is random, but at least ``border``
    pixels from the image's border; in small images, this distance is halved until it fits.  Pixels outside the image get
    the padding colour.

    Args:
        size: side of the network input in pixels.
        scales: possible factors; a factor above 1 zooms out.
        border: smallest distance of the square's centre from the image's border, in pixels.
        flip: probability of mirroring left to right.
        color: colour change, or None.
    """

    size: int
    scales: Sequence[float] = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3)
    border: int = 128
    flip: float = 0.5
    color: ColorJitter | None = None

    def __call__(
        self, sample: Sample, rng: np.random.Generator, shared: np.random.Generator | None = None
    ) -> Sample:
        height, width = sample.image.shape[:2]
        side = max(height, width) * self.scales[int(rng.integers(len(self.scales)))]
        x, y = (rng.uniform(b, length - b) for length in (width, height) for b in [self._margin(length)])
        scale = self.size / side
        mirrored = rng.random() < self.flip
        along = -scale if mirrored else scale
        matrix = np.array([[along, 0, self.size / 2 - along * x], [0, scale, self.size / 2 - scale * y]])
        # The colours change before the crop, so that the padding keeps its colour.
        image = warp(_recoloured(sample, self.color, rng), matrix, self.size, self.size)
        return _moved(sample, image, matrix, SMALLEST_SIDE)

    def _margin(self, length: int) -> float:
        """``border``, halved until two margins are shorter than ``length``."""
        margin = float(self.border)
        while 2 * margin >= length:
            margin /= 2
        return margin


@dataclass
class FixedTransform:
    """Training on images of the network's size: mirror, transpose, recolour.

    Args:
        flip: probability of mirroring left to right.
        flip_both: whether images are also mirrored top to bottom, with the same probability.
        transpose: probability of exchanging x and y.
        color: colour change, or None.
    """

    flip: float = 0.5
    flip_both: bool = False
    transpose: float = 0.0
    color: ColorJitter | None = None

    def __call__(
        self, sample: Sample, rng: np.random.Generator, shared: np.random.Generator | None = None
    ) -> Sample:
        height, width = sample.image.shape[:2]
        image = _recoloured(sample, self.color, rng)
        matrix = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        if rng.random() < self.flip:
            image, matrix[0] = image[:, ::-1], (-1.0, 0.0, width)
        if self.flip_both and rng.random() < self.flip:
            image, matrix[1] = image[::-1], (0.0, -1.0, height)
        if rng.random() < self.transpose:
            image, matrix = image.transpose(1, 0, 2), matrix[::-1]
        return _moved(sample, np.ascontiguousarray(image), matrix, SMALLEST_SIDE)


@dataclass
class EvalResize:
    """Evaluation: resize the short side to a fixed length, with a limit for the long side.

    With both lengths equal, the long side gets this length.
    """

    short_side: int
    max_long_side: int

    def __call__(
        self, sample: Sample, rng: np.random.Generator, shared: np.random.Generator | None = None
    ) -> Sample:
        return _resized(sample, self.short_side, self.max_long_side, mirrored=False, smallest_side=0.0)


class PadOnly:
    """Evaluation at the images' own size: only the batch adds padding."""

    def __call__(
        self, sample: Sample, rng: np.random.Generator, shared: np.random.Generator | None = None
    ) -> Sample:
        return sample


def _recoloured(sample: Sample, color: ColorJitter | None, rng: np.random.Generator) -> np.ndarray:
    pixels = np.asarray(sample.image)
    return color(pixels, rng) if color else pixels


def warp(image: np.ndarray, matrix: np.ndarray, width: int, height: int) -> np.ndarray:
    """Map an image (h, w, 3) uint8 by an affine matrix (2, 3) to (height, width, 3), with ``PAD_COLOR`` outside.

    Interpolation is bilinear. An image that shrinks to half or less is first reduced by an integer factor with averages, so
    that every pixel counts.
    """
    shrink = int(1 / np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    if shrink >= 2:
        h, w = image.shape[:2]
        small_h, small_w = max(h // shrink, 1), max(w // shrink, 1)
        image = cv2.resize(image, (small_w, small_h), interpolation=cv2.INTER_AREA)
        matrix = matrix * (w / small_w, h / small_h, 1.0)
    # In the matrix, pixel 0 covers [0, 1]; in OpenCV, the centre of pixel 0 is at 0.
    centred = matrix.copy()
    centred[:, 2] += 0.5 * matrix[:, :2].sum(axis=1) - 0.5
    return cv2.warpAffine(
        image,
        centred,
        (width, height),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=PAD_COLOR,
    )


def resized_size(height: int, width: int, short_side: int, max_long_side: int) -> tuple[int, int]:
    """Height and width of an image after resizing to a short side of ``short_side`` and at most ``max_long_side``."""
    scale = min(short_side / min(height, width), max_long_side / max(height, width))
    return max(round(height * scale), 1), max(round(width * scale), 1)


def _resized(
    sample: Sample, short_side: int, max_long_side: int, mirrored: bool, smallest_side: float
) -> Sample:
    height, width = sample.image.shape[:2]
    new_height, new_width = resized_size(height, width, short_side, max_long_side)
    image = ResizedImage(np.asarray(sample.image), new_height, new_width, mirrored)
    matrix = np.array([[new_width / width, 0.0, 0.0], [0.0, new_height / height, 0.0]])
    if mirrored:
        matrix[0] = (-matrix[0, 0], 0.0, new_width)
    return _moved(sample, image, matrix, smallest_side)


def _moved(
    sample: Sample, image: np.ndarray | ResizedImage, matrix: np.ndarray, smallest_side: float
) -> Sample:
    """The sample of a transformed image: annotations are mapped and clipped to the image; objects that are too small or
    outside are dropped."""
    height, width = image.shape[:2]
    whole = transform_boxes(sample.boxes, matrix)
    limits = np.array([width, height, width, height], dtype=np.float32)
    boxes = np.clip(whole, 0, limits)
    sides = boxes[:, 2:] - boxes[:, :2]
    kept = ((sides > 0) & (sides >= smallest_side)).all(axis=1)
    points, polygons = sample.extreme_points, sample.polygons
    if polygons is not None:
        polygons = _chosen(replace(polygons, points=transform_points(polygons.points, matrix)), kept)
    if points is not None:
        # Mirroring turns the leftmost point into the rightmost one: each new side takes the point of the old side that now
        # has its direction.
        old_side = (_SIDES @ matrix[:, :2] @ _SIDES.T).argmax(axis=1)
        points = transform_points(points[:, old_side], matrix)
        cut = (boxes != whole).any(axis=1)
        points = _recut(points[kept], cut[kept], polygons, width, height)
    return replace(
        sample,
        image=image,
        boxes=boxes[kept],
        labels=sample.labels[kept],
        ignored=sample.ignored[kept],
        matrix=matrix,
        extreme_points=points,
        polygons=polygons,
    )


def _chosen(polygons: Polygons, kept: np.ndarray) -> Polygons:
    """The outlines of the objects for which ``kept`` (n,) is true."""
    return _packed([polygons.parts(a) for a in np.flatnonzero(kept).tolist()])


def _packed(objects: list[list[np.ndarray]]) -> Polygons:
    flat = [part for parts in objects for part in parts]
    points = np.concatenate(flat) if flat else np.zeros((0, 2), dtype=np.float32)
    part_offsets = np.cumsum([0] + [len(part) for part in flat])
    return Polygons(points, part_offsets, np.cumsum([0] + [len(parts) for parts in objects]))


def _recut(
    points: np.ndarray, cut: np.ndarray, polygons: Polygons | None, width: int, height: int
) -> np.ndarray:
    """Extreme points (n, 4, 2) after the image border has cut some objects.

    A cut object gets the extreme points of the part of its outline inside the image.  Without an outline its points are
    unknown, unless all four are still inside: a point moved to the border might not be on the object.
    """
    points = points.copy()
    for a in np.flatnonzero(cut).tolist():
        parts = [] if polygons is None else polygons.parts(a)
        if parts:
            inside = [part for part in (clip_polygon(part, width, height) for part in parts) if len(part)]
            clipped = _packed([inside])
            points[a] = extreme_points_of_polygons(
                clipped.points, clipped.part_offsets, clipped.object_part_offsets
            )[0]
            _centre_on_border(points[a], parts, width, height)
        elif not ((points[a] >= 0) & (points[a] <= (width, height))).all():
            points[a] = np.nan
    return points


def _centre_on_border(points: np.ndarray, parts: list[np.ndarray], width: int, height: int) -> None:
    """Move the extreme points (4, 2) of cut sides to the middle of the longest cut.

    Clipping joins the pieces of a concave outline along the border; the middle of all pieces may be outside the object.
    """
    size = (width, height)
    for side, (axis, limit) in enumerate(((1, 0.0), (0, 0.0), (1, float(height)), (0, float(width)))):
        if points[side, axis] == limit:
            middle = longest_chord(parts, axis, limit, size[1 - axis])
            if middle is not None:
                points[side, 1 - axis] = middle
