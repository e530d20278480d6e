"""Equalization loss: objects of other classes do not push rare classes down.

Tan et al., Equalization Loss for Long-Tailed Object Recognition, CVPR 2020, eq. 3.

    w_j = 1 - E(r) T(f_j) (1 - y_j)

E(r) is 1 at a location that belongs to an object and 0 on background. T is 1 for the classes that are rarer than lambda. So w_j is 0
on negatives of rare classes at objects of other classes, and 1 everywhere else.

Default: classes in fewer than 100 training images (LVIS's frequent classes are in more than 100); the paper's lambda of 1.76e-3
on LVIS v0.5 is 100 of 57,000 images. The paper's element loss is cross-entropy. Here it is the head's focal loss, because a dense
head also learns the background, which the paper leaves to a first stage.

Anchors, grids and heat maps: ``at_objects`` says which locations belong to an object. ObjectBox's objectness has one class and
keeps plain weights.

Differs from the official code only in the threshold, which is a number of images instead of a share of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from afl.losses.at_objects import weighed_at_objects
from afl.losses.contract import MapInfo
from afl.losses.target import ClassificationTarget
from afl.losses.weighting import ElementWeights, Weighting


class Equalization(Weighting):
    """Leaves out the negatives of rare classes at the locations of objects.

    Args:
        info: the map; its ``images_per_class`` are compared.
        images: classes in fewer training images are rare; positive.
    """

    spared: Tensor

    def __init__(self, info: MapInfo, *, images: float = 100.0) -> None:
        super().__init__()
        if images <= 0:
            raise ValueError(f"images is {images}, but the threshold of rare classes must be positive.")
        self.register_buffer("spared", info.images_per_class < images)

    def forward(
        self, logits: Tensor, target: ClassificationTarget, weights: ElementWeights
    ) -> ElementWeights:
        return weighed_at_objects(logits, target, weights, self._factor)

    def statistics(self) -> dict[str, float | Tensor]:
        return {"spared_classes": self.spared.sum()}

    def _factor(self, z: Tensor, label: Tensor, image: Tensor) -> Tensor:
        return torch.where(self.spared, 0.0, 1.0).to(z.dtype).expand_as(z)
