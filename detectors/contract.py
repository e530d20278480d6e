"""The contract of all detectors: three methods and the data types that they exchange.

``forward(images) -> outputs`` never sees targets, ``losses(outputs, targets) -> dict of scalars`` never
decodes, ``decode(outputs, image_sizes) -> list of Detections`` never sees targets.  Coordinates everywhere:
boxes are (x1, y1, x2, y2) in pixels of the network input, continuous, the image spanning [0, W] x [0, H].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from afl.losses.contract import MapInfo, MapLoss

Outputs = dict[str, Tensor]


@dataclass(frozen=True)
class Targets:
    """Ground truth of a batch, padded to M boxes per image.

    Attributes:
        boxes: (B, M, 4) float32 xyxy.
        labels: (B, M) int64 in [0, C), -1 at padding.
        ignored: (B, M) bool: crowd regions and difficult objects, never positives, nothing is learnt inside.
        image_sizes: (B, 2) int64 height and width of each image inside the padded batch.
        extreme_points: (B, M, 4, 2) float32 (x, y) of top, left, bottom, right, NaN where unknown; or None.
        verified: (B, C) bool classes checked in each image (LVIS); or None.
    """

    boxes: Tensor
    labels: Tensor
    ignored: Tensor
    image_sizes: Tensor
    extreme_points: Tensor | None = None
    verified: Tensor | None = None

    @property
    def valid(self) -> Tensor:
        """(B, M) bool: real objects to be learnt."""
        return (self.labels >= 0) & ~self.ignored

    @property
    def ignored_boxes(self) -> Tensor:
        """(B, M) bool: regions in which no negative is to be learnt."""
        return (self.labels >= 0) & self.ignored


@dataclass(frozen=True)
class Detections:
    """Detections of one image: boxes (n, 4) float32 xyxy, scores (n,) float32, labels (n,) int64,
    by falling score; on the CPU."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


@dataclass(frozen=True)
class ClassCounts:
    """How often each class occurs in the training set: (C,) float instances and images with it.

    ``fractal_dimension`` computes where it occurs, see ``MapInfo``; None where the data set is not at hand.
    """

    instances: Tensor
    images: Tensor
    fractal_dimension: Callable[[], Tensor] | None = None

    def __len__(self) -> int:
        return self.instances.shape[0]

    def map_info(self, name: str, *, prior: float, alpha: float, dense_positives: bool) -> MapInfo:
        """The facts about a map over these classes that its loss receives."""
        return MapInfo(
            name=name,
            num_classes=len(self),
            instances_per_class=self.instances,
            images_per_class=self.images,
            prior=prior,
            alpha=alpha,
            dense_positives=dense_positives,
            fractal_dimension=self.fractal_dimension,
        )


LossFactory = Callable[[MapInfo], MapLoss]


class Detector(Protocol):
    """The three methods of a detector, and the attributes that the training loop reads."""

    loss_weights: dict[str, float]
    classification: nn.ModuleDict

    def class_layers(self) -> dict[str, list[nn.Conv2d]]:
        """The last layers of each classification map, by its name. Their bias holds the prior."""

    def forward(self, images: Tensor) -> Outputs:
        """(B, 3, H, W) normalised float images, H and W multiples of 32, to raw outputs."""

    def losses(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        """Named scalars, each already divided by its normaliser and not yet by its weight in the sum."""

    def decode(self, outputs: Outputs, image_sizes: Tensor) -> list[Detections]:
        """(B, 2) sizes of the images inside the batch, on any device; detections, clipped to them, on the CPU."""


def weighted_sum(losses: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """The sum that training minimises: each term times its weight (1 without a weight)."""
    return torch.stack([weights.get(name, 1.0) * value for name, value in losses.items()]).sum()
