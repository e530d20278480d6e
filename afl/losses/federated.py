"""Federated loss: each image teaches its own classes and a sample of the others.

Zhou, Koltun & Kraehenbuehl, Probabilistic Two-Stage Detection, 2021 (arXiv 2103.07461), section "Federated loss".

    S_b = classes of the objects in image b, and classes drawn from the others with probability ~ n_c^power, |S_b| = size

where n_c is the number of training images with class c. Negatives of classes outside S_b take no part in the loss of image
b. Defaults of the paper: power 1/2 and size 50 on LVIS's 1,203 classes. A fixed 50 would be all classes of a small data
set, so ``size: null`` is 50, or a third of the classes if that is less. Draws are without replacement.

Anchors, grids and heat maps alike: the map's negatives of image b and class c are kept if c is in S_b. A map with one class
keeps all of them.

Differs from the official code: S belongs to an image, as in the paper, where the code has one S for all images of a device.
The images of one step share the random numbers, so two processes draw what one would. A class without a training image is
drawn as if it had one. Negatives that the data set never verified (LVIS with ``dataset.federated``) stay out as well.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from afl.losses.contract import MapInfo
from afl.losses.draws import uniform
from afl.losses.target import ClassificationTarget
from afl.losses.weighting import StepCounting

# The paper's number of classes, and the part of a small data set's classes that replaces it.
_PUBLISHED, _PART = 50, 3


class FederatedSampling(StepCounting):
    """Leaves out the negatives of classes that are neither in the image nor drawn.

    Args:
        info: the map; its ``images_per_class`` are the frequencies.
        size: number of classes for each image, its own included, at least 1; None: 50, at most a third of all.
        power: exponent of the frequency, not negative.
    """

    chance: Tensor

    def __init__(self, info: MapInfo, *, size: int | None = None, power: float = 0.5) -> None:
        super().__init__()
        if size is None:
            size = min(_PUBLISHED, -(-info.num_classes // _PART))
        if size < 1 or power < 0:
            raise ValueError(f"size is {size} and power {power}: at least 1 and not negative are needed.")
        self.size = size
        self.register_buffer("chance", info.images_per_class.double().clamp(min=1.0) ** power)

    def prepared(self, target: ClassificationTarget) -> ClassificationTarget:
        kept = self.classes(target)
        return replace(target, verified=kept if target.verified is None else target.verified & kept)

    def classes(self, target: ClassificationTarget) -> Tensor:
        """(B, C) bool, which classes are in S_b."""
        own = classes_of_images(target)
        position = torch.arange(target.num_classes, device=own.device)
        # The largest of these keys are a draw without replacement with the given chances (Gumbel).
        noise = uniform(position, self.steps).double().clamp(min=2.0**-25)
        key = (self.chance.log() - (-noise.log()).log()).expand_as(own).masked_fill(own, -torch.inf)
        rank = key.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        wanted = self.size - own.sum(1, keepdim=True)
        return own | (rank < wanted)


def classes_of_images(target: ClassificationTarget) -> Tensor:
    """(B, C) bool, classes with a positive in each image."""
    count = target.num_images * target.num_classes
    # One element more than the matrix, where padding is written.
    found = torch.zeros(count + 1, dtype=torch.bool, device=target.positive.device)
    if target.num_locations:
        pair = target.image[target.positive_location] * target.num_classes + target.positive_class
        found[torch.where(target.is_positive, pair, count)] = True
    return found[:count].view(target.num_images, target.num_classes)
