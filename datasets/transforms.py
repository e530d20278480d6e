"""Geometric and colour transforms of samples.

The geometry of a transform is one affine matrix (2, 3) from pixels of the file to pixels of the network
input, made of scale, shift, mirror and transpose.  Image, boxes, outlines and extreme points go through that
same matrix once, and it travels with the sample, so that detections can be mapped back.  All randomness comes
from the generator that is passed in.

A transform is called with a sample that shows its file unchanged, ``transform(sample, rng, shared)``, and returns a new
one. ``shared`` draws the same numbers for every sample of a batch; without it, each sample draws its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from datasets.batch import PAD_COLOR, Polygons, ResizedImage, Sample
from datasets.color import ColorJitter
from datasets.extreme_points import extreme_points_of_polygons
from datasets.geometry import clip_polygon, longest_chord, transform_boxes, transform_points

# Objects that a transform leaves with a side of less than a pixel are dropped from training.
SMALLEST_SIDE = 1.0

# Outward directions of the extreme points' sides: top, left, bottom, right.
_SIDES = np.array([(0, -1), (-1, 0), (0, 1), (1, 0)])


class ResizeTransform:
    """For dense heads: short side to a random length, long side limited, mirrored, recoloured.

    All images of a batch get the same short side, so that they need little padding.

    Args:
        short_sides: lengths in pixels to draw from.
        max_long_side: the long side becomes no longer than this.
        flip: probability of mirroring left to right.
        color: colour change, or None.
    """

    def __init__(
        self,
        short_sides: Sequence[int],
        max_long_side: int,
        flip: float = 0.5,
        color: ColorJitter | None = None,
    ) -> None:
        self.short_sides = tuple(short_sides)
        self.max_long_side = max_long_side
        self.flip = flip
        self.color = color

    def __call__(
        self, sample: Sample, rng: np.random.Generator, shared: np.random.Generator | None = None
    ) -> Sample:
        short_side = self.short_sides[(shared or rng).integers(len(self.short_sides))]
        mirrored = rng.random() < self.flip
        image = self.color(sample.image, rng) if self.color else sample.image
        return _resized(replace(sample, image=image), short_side, self.max_long_side, mirrored, SMALLEST_SIDE)


class CropTransform:
    """For heat-map heads: a random square of the image, scaled to a fixed size (Zhou et al. 2019, CenterNet).

    The square's side is the image's longer side times a random factor, its centre random at least ``border``
    pixels (less in small images) from the image's border.  What lies outside the image has the padding
    colour.

    Args:
        size: side of the network input in pixels.
        scales: factors to draw from; above 1 zooms out.
        border: smallest distance of the square's centre from the image's border, in pixels.
        flip: probability of mirroring left to right.
        color: colour change, or None.
    """

    def __init__(
        self,
        size: int,
        scales: Sequence[float] = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3),
        border: int = 128,
        flip: float = 0.5,
        color: ColorJitter | None = None,
    ) -> None:
        self.size = size
        self.scales = tuple(scales)
        self.border = border
        self.flip = flip
        self.color = color

    def __call__(
        self, sample: Sample, rng: np.random.Generator, shared: np.random.Generator | None = None
    ) -> Sample:
        height, width = sample.image.shape[:2]
        side = max(height, width) * self.scales[rng.integers(len(self.scales))]
        x, y = (rng.uniform(b, length - b) for length in (width, height) for b in [self._margin(length)])
        scale = self.size / side
        mirrored = rng.random() < self.flip
        along = -scale if mirrored else scale
        matrix = np.array([[along, 0, self.size / 2 - along * x], [0, scale, self.size / 2 - scale * y]])
        # Recoloured before the crop, so that the padding keeps its colour.
        image = self.color(sample.image, rng) if self.color else sample.image
        image = warp(image, matrix, self.size, self.size)
        return _moved(sample, image, matrix, SMALLEST_SIDE)

    def _margin(self, length: int) -> float:
        """``border``, halved until the two margins leave room between them."""
        margin = float(self.border)
        while 2 * margin >= length:
            margin /= 2
        return margin


class FixedTransform:
    """For images that have the network's size already: mirrored, transposed, recoloured.

    Args:
        flip: probability of mirroring left to right, and as much again of mirroring top to bottom with
            ``flip_both``.
        flip_both: whether up and down mean nothing in these images.
        transpose: probability of exchanging x and y.
        color: colour change, or None.
    """

    def __init__(
        self,
        flip: float = 0.5,
        flip_both: bool = False,
        transpose: float = 0.0,
        color: ColorJitter | None = None,
    ) -> None:
        self.flip = flip
        self.flip_both = flip_both
        self.transpose = transpose
        self.color = color

    def __call__(
        self, sample: Sample, rng: np.random.Generator, shared: np.random.Generator | None = None
    ) -> Sample:
        height, width = sample.image.shape[:2]
        image = self.color(sample.image, rng) if self.color else sample.image
        matrix = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        if rng.random() < self.flip:
            image, matrix[0] = image[:, ::-1], (-1.0, 0.0, width)
        if self.flip_both and rng.random() < self.flip:
            image, matrix[1] = image[::-1], (0.0, -1.0, height)
        if rng.random() < self.transpose:
            image, matrix = image.transpose(1, 0, 2), matrix[::-1]
        return _moved(sample, np.ascontiguousarray(image), matrix, SMALLEST_SIDE)


class EvalResize:
    """For evaluation: short side to a fixed length, long side limited; with both equal, the long side."""

    def __init__(self, short_side: int, max_long_side: int) -> None:
        self.short_side = short_side
        self.max_long_side = max_long_side

    def __call__(
        self, sample: Sample, rng: np.random.Generator, shared: np.random.Generator | None = None
    ) -> Sample:
        return _resized(sample, self.short_side, self.max_long_side, mirrored=False, smallest_side=0.0)


class PadOnly:
    """For evaluation at the images' own size: nothing but the padding of the batch."""

    def __call__(
        self, sample: Sample, rng: np.random.Generator, shared: np.random.Generator | None = None
    ) -> Sample:
        return sample


def warp(image: np.ndarray, matrix: np.ndarray, width: int, height: int) -> np.ndarray:
    """Image (h, w, 3) uint8 through an affine matrix (2, 3) into (height, width, 3), outside in
    ``PAD_COLOR``.

    Bilinear; an image that shrinks to less than half is averaged down by a whole factor first, so that no
    pixel of it goes unseen.
    """
    shrink = int(1 / np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    if shrink >= 2:
        h, w = image.shape[:2]
        small_h, small_w = max(h // shrink, 1), max(w // shrink, 1)
        image = cv2.resize(image, (small_w, small_h), interpolation=cv2.INTER_AREA)
        matrix = matrix * (w / small_w, h / small_h, 1.0)
    # The matrix speaks of a plane where pixel 0 covers [0, 1]; OpenCV puts the centre of pixel 0 at 0.
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
    """Height and width of an image whose short side gets a length, unless its long side would become too long."""
    scale = min(short_side / min(height, width), max_long_side / max(height, width))
    return max(round(height * scale), 1), max(round(width * scale), 1)


def _resized(
    sample: Sample, short_side: int, max_long_side: int, mirrored: bool, smallest_side: float
) -> Sample:
    height, width = sample.image.shape[:2]
    new_height, new_width = resized_size(height, width, short_side, max_long_side)
    image = ResizedImage(sample.image, new_height, new_width, mirrored)
    matrix = np.array([[new_width / width, 0.0, 0.0], [0.0, new_height / height, 0.0]])
    if mirrored:
        matrix[0] = (-matrix[0, 0], 0.0, new_width)
    return _moved(sample, image, matrix, smallest_side)


def _moved(
    sample: Sample, image: np.ndarray | ResizedImage, matrix: np.ndarray, smallest_side: float
) -> Sample:
    """The sample on its transformed image: annotations mapped, cut at the border, the vanished dropped."""
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
        # Mirrored, the leftmost point becomes the rightmost: each new side takes the old one that now points
        # there.
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
    """Outlines of some objects only."""
    return _packed([polygons.parts(a) for a in np.flatnonzero(kept)])


def _packed(objects: list[list[np.ndarray]]) -> Polygons:
    flat = [part for parts in objects for part in parts]
    points = np.concatenate(flat) if flat else np.zeros((0, 2), dtype=np.float32)
    part_offsets = np.cumsum([0] + [len(part) for part in flat])
    return Polygons(points, part_offsets, np.cumsum([0] + [len(parts) for parts in objects]))


def _recut(
    points: np.ndarray, cut: np.ndarray, polygons: Polygons | None, width: int, height: int
) -> np.ndarray:
    """Extreme points (n, 4, 2) after the border has cut some objects.

    A cut object's points are those of its outline inside the image.  Without an outline they are unknown,
    unless all four still lie inside: moving them to the border would put them off the object.
    """
    points = points.copy()
    for a in np.flatnonzero(cut):
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
    """Put the extreme points (4, 2) of sides that the border has cut in the middle of the longest cut.

    Clipping joins the pieces of a concave outline along the border; the middle of all of them may lie off the
    object.
    """
    size = (width, height)
    for side, (axis, limit) in enumerate(((1, 0.0), (0, 0.0), (1, float(height)), (0, float(width)))):
        if points[side, axis] == limit:
            middle = longest_chord(parts, axis, limit, size[1 - axis])
            if middle is not None:
                points[side, 1 - axis] = middle
