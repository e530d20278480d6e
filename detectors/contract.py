"""The contract of all detectors: three methods and the data types that they exchange.

``forward(images) -> outputs`` and ``decode(outputs, image_sizes) -> list of Detections`` do not receive targets, and
``losses(outputs, targets) -> dict of scalars`` does not decode. All boxes are (x1, y1, x2, y2) in continuous pixels of the network
input, where the image spans [0, W] x [0, H].
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
        ignored: (B, M) bool: crowd regions and difficult objects, which are never positives and whose area is ignored.
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
        """(B, M) bool: objects that the detector learns."""
        return (self.labels >= 0) & ~self.ignored

    @property
    def ignored_boxes(self) -> Tensor:
        """(B, M) bool: regions in which negatives are ignored."""
        return (self.labels >= 0) & self.ignored


@dataclass(frozen=True)
class Detections:
    """Detections of one image in descending order of score, on the CPU: boxes (n, 4) float32 xyxy, scores (n,) float32, labels (n,)
    int64."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


@dataclass(frozen=True)
class ClassCounts:
    """Training counts of each class: (C,) float instances, and (C,) float images with the class.

    ``fractal_dimension`` computes the distribution of their positions, see ``MapInfo``; None if the data set is not available.
    """

    instances: Tensor
    images: Tensor
    fractal_dimension: Callable[[], Tensor] | None = None

    def __len__(self) -> int:
        return self.instances.shape[0]

    def map_info(self, name: str, *, prior: float, alpha: float, dense_positives: bool) -> MapInfo:
        """Describe a map over these classes for its loss."""
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
    """The three methods of a detector, and the attributes that the training loop and the evaluation read.

    ``max_detections`` is the largest number of detections of an image; an evaluation of AP_fixed increases it for a while. A
    detector without heat maps also has ``strides``, one for each level, from which its score maps are drawn.
    """

    loss_weights: dict[str, float]
    classification: nn.ModuleDict
    max_detections: int

    def class_layers(self) -> dict[str, list[nn.Conv2d]]:
        """The last layers of each classification map, by its name. Their bias holds the prior."""

    def forward(self, images: Tensor) -> Outputs:
        """Compute raw outputs of normalised float images (B, 3, H, W), where H and W are multiples of 32."""

    def losses(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        """Compute named scalars, divided by their normalisers but not yet multiplied by their weights in the sum."""

    def decode(self, outputs: Outputs, image_sizes: Tensor) -> list[Detections]:
        """Compute the detections of each image, clipped to the image, on the CPU.

        Args:
            image_sizes: (B, 2) height and width of each image without padding, on any device.
        """


def weighted_sum(losses: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """The sum that training minimises: each term times its weight, which is 1 by default."""
    return torch.stack([weights.get(name, 1.0) * value for name, value in losses.items()]).sum()
