"""Samples, which the transforms take and return, and batches, which go to the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor
from torch.utils.data import get_worker_info

# ImageNet's mean colour in RGB, rounded.  The detector subtracts the mean, after which this padding is about 0, like the
# zero padding of the convolutions.
PAD_COLOR = (124, 116, 104)


@dataclass(frozen=True)
class Polygons:
    """Outlines of n objects in flat arrays.

    Attributes:
        points: (V, 2) vertices in pixels of the sample's image.
        part_offsets: (P + 1,) part p has vertices part_offsets[p] to part_offsets[p + 1].
        object_part_offsets: (n + 1,) object a has parts object_part_offsets[a] to object_part_offsets[a + 1].
    """

    points: np.ndarray
    part_offsets: np.ndarray
    object_part_offsets: np.ndarray

    def parts(self, a: int) -> list[np.ndarray]:
        """Vertices (m, 2) of each part of object a."""
        return [
            self.points[self.part_offsets[p] : self.part_offsets[p + 1]]
            for p in range(self.object_part_offsets[a], self.object_part_offsets[a + 1])
        ]


@dataclass(frozen=True)
class ResizedImage:
    """An image that ``collate`` resizes directly into the batch, without an intermediate copy.

    Attributes:
        source: (h, w, 3) uint8 RGB.
        height, width: of the result.
        mirrored: left to right.
    """

    source: np.ndarray
    height: int
    width: int
    mirrored: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, 3) of the result."""
        return self.height, self.width, 3

    def write(self, out: np.ndarray) -> None:
        """Resize into ``out`` (H, W, 3) uint8: by averages if the image shrinks, bilinearly if it grows."""
        shrinks = self.height * self.width < self.source.shape[0] * self.source.shape[1]
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        # The smaller of the two images is mirrored: resizing and mirroring commute.
        source = cv2.flip(self.source, 1) if self.mirrored and not shrinks else self.source
        cv2.resize(source, (self.width, self.height), dst=out, interpolation=method)
        if self.mirrored and shrinks:
            cv2.flip(out, 1, dst=out)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        pixels = np.empty(self.shape, dtype=np.uint8)
        self.write(pixels)
        return pixels if dtype is None else pixels.astype(dtype)


@dataclass
class Sample:
    """One image with its n objects, in continuous pixels of ``image``.

    Attributes:
        image: (H, W, 3) uint8 RGB, or an image that ``collate`` resizes; ``np.asarray`` gives the pixels of both.
        boxes: (n, 4) float32 xyxy.
        labels: (n,) int64 class numbers.
        ignored: (n,) bool, crowd regions and difficult objects.
        image_id: id in the data set.
        original_size: (height, width) of the image in its file.
        matrix: (2, 3) float64, affine map from pixels of the file to pixels of ``image``.
        extreme_points: (n, 4, 2) float32 top, left, bottom, right, NaN where unknown; None if not requested.
        polygons: outlines, from which cut objects get new extreme points; None if not requested.
        verified: (C,) bool, classes verified in this image (LVIS); None if all are.
    """

    image: np.ndarray | ResizedImage
    boxes: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray
    image_id: int
    original_size: tuple[int, int]
    matrix: np.ndarray
    extreme_points: np.ndarray | None = None
    polygons: Polygons | None = None
    verified: np.ndarray | None = None


@dataclass(frozen=True)
class Batch:
    """B images of one padded size with up to M objects each.

    Attributes:
        images: (B, 3, H, W) uint8 RGB in channels-last memory, padded at the bottom and the right with
            ``PAD_COLOR``.
        boxes: (B, M, 4) float32 xyxy in pixels of ``images``.
        labels: (B, M) int64, -1 at padding.
        ignored: (B, M) bool, crowd regions and difficult objects.
        sizes: (B, 2) int64 height and width of each image inside the padded batch.
        image_ids: (B,) int64.
        original_sizes: (B, 2) int64 height and width of each image in its file.
        matrices: (B, 2, 3) float32 affine maps from pixels of the file to pixels of ``images``.
        extreme_points: (B, M, 4, 2) float32, NaN where unknown; or None.
        verified: (B, C) bool; or None.
    """

    images: Tensor
    boxes: Tensor
    labels: Tensor
    ignored: Tensor
    sizes: Tensor
    image_ids: Tensor
    original_sizes: Tensor
    matrices: Tensor
    extreme_points: Tensor | None = None
    verified: Tensor | None = None

    def __len__(self) -> int:
        return self.images.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory: copies from it to a GPU can overlap with computation."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        moved: dict[str, Any] = {
            name: None if value is None else function(value) for name, value in values.items()
        }
        return Batch(**moved)


def collate(samples: Sequence[Sample], divisors: tuple[int, int] = (32, 32)) -> Batch:
    """Pad samples to one size and to one number of objects, at least 1.

    Args:
        divisors: see :func:`padded_size`.
    """
    count, objects = len(samples), max(1, *(len(sample.labels) for sample in samples))
    height, width = padded_size([sample.image.shape[:2] for sample in samples], divisors)
    images = _pixels(count, height, width)
    boxes = np.zeros((count, objects, 4), dtype=np.float32)
    labels = np.full((count, objects), -1, dtype=np.int64)
    ignored = np.zeros((count, objects), dtype=bool)
    with_points = samples[0].extreme_points is not None
    points = np.full((count, objects, 4, 2), np.nan, dtype=np.float32) if with_points else None
    for i, sample in enumerate(samples):
        h, w = sample.image.shape[:2]
        n = len(sample.labels)
        _place(sample.image, images[i].numpy())
        boxes[i, :n], labels[i, :n], ignored[i, :n] = sample.boxes, sample.labels, sample.ignored
        if points is not None:
            points[i, :n] = sample.extreme_points
    verified = [sample.verified for sample in samples if sample.verified is not None]
    return Batch(
        images=images.permute(0, 3, 1, 2),
        boxes=torch.from_numpy(boxes),
        labels=torch.from_numpy(labels),
        ignored=torch.from_numpy(ignored),
        sizes=torch.tensor([sample.image.shape[:2] for sample in samples], dtype=torch.int64),
        image_ids=torch.tensor([sample.image_id for sample in samples], dtype=torch.int64),
        original_sizes=torch.tensor([sample.original_size for sample in samples], dtype=torch.int64),
        matrices=torch.from_numpy(np.stack([sample.matrix for sample in samples]).astype(np.float32)),
        extreme_points=None if points is None else torch.from_numpy(points),
        verified=torch.from_numpy(np.stack(verified)) if verified else None,
    )


def padded_size(sizes: Sequence[tuple[int, ...]], divisors: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a batch of images with these heights and widths.

    Args:
        divisors: the short and the long side of the batch are multiples of these two numbers; both sides of a square batch
            are multiples of the first.
    """
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    short, long = divisors
    rows, columns = long if height > width else short, long if width > height else short
    return -(-height // rows) * rows, -(-width // columns) * columns


def _pixels(count: int, height: int, width: int) -> Tensor:
    """An uninitialised tensor (count, height, width, 3) uint8."""
    if get_worker_info() is None:
        return torch.from_numpy(np.empty((count, height, width, 3), dtype=np.uint8))
    # A loader's worker allocates shared memory, so that the training process needs no copy.
    storage = torch.UntypedStorage._new_shared(count * height * width * 3)
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(count, height, width, 3)


def _place(image: np.ndarray | ResizedImage, canvas: np.ndarray) -> None:
    """Write an image to the upper left corner of a canvas (H, W, 3) and fill the rest with the padding colour."""
    height, width = image.shape[:2]
    if isinstance(image, ResizedImage):
        image.write(canvas[:height, :width])
    else:
        canvas[:height, :width] = image
    for top, left in ((height, 0), (0, width)):
        if top < canvas.shape[0] and left < canvas.shape[1]:
            bottom = canvas.shape[0] if top else height
            corner = (canvas.shape[1] - 1, bottom - 1)
            cv2.rectangle(canvas, (left, top), corner, PAD_COLOR, thickness=cv2.FILLED)


def boxes_in_file(boxes: Tensor, matrix: Tensor, original_size: Tensor) -> Tensor:
    """Map detected boxes (n, 4) xyxy back to pixels of the image file and clip them to the image.

    Args:
        boxes: in pixels of the network input.
        matrix: (2, 3) this image's row of ``Batch.matrices``.
        original_size: (2,) this image's row of ``Batch.original_sizes``, height and width.
    """
    linear, shift = matrix[:, :2].double(), matrix[:, 2].double()
    corners = (boxes.double().view(-1, 2, 2) - shift) @ torch.linalg.inv(linear).T
    limit = original_size.flip(0).to(corners)
    corners = torch.minimum(corners.clamp(min=0), limit)
    return torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1).to(boxes.dtype)
