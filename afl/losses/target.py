"""The sparse target of one classification map.

A *map* is a tensor of logits (R, C): R locations (anchors, grid cells or heat-map pixels, of all images of
the batch one after the other) times C classes.  Almost every element of it is a plain negative, so a target
lists only the exceptions: the positives, the negatives whose loss is scaled down, the ignored locations and
the unverified classes.  No tensor of shape (R, C) is ever built.

An *element* is one (location, class) pair; its flat index is ``location * C + class``.  Lists of elements may
be padded with ``PADDING``, so that their length is known without waiting for the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PADDING = -1


@dataclass(frozen=True)
class ClassificationTarget:
    """Sparse target of one map of logits (R, C).

    Attributes:
        num_classes: C.
        image: (R,) int64, position in the batch of the image that a location belongs to, non-decreasing.
        num_images: B, number of images in the batch.
        positive: (P,) int64, flat indices of the positive elements, unique; ``PADDING`` entries are skipped.
        value: (P,) float in [0, 1], soft target of each positive; None means 1 everywhere.
        ignored: (R,) bool, locations that take no part in the loss; None means none. A positive there still
            counts, such as the point of an object inside a crowd region on a heat map.
        negative_index: (K,) int64, flat indices of negatives whose loss is scaled, unique;
            ``PADDING`` entries are skipped. Where a positive and a scaled negative meet, the positive wins.
        negative_scale: (K,) float in [0, 1], factor of those negatives' loss, (1 - Y)^4 on heat maps.
        verified: (B, C) bool, classes whose presence or absence was checked in an image (LVIS federated
            annotation); negatives of other classes take no part. None means all were checked.
        overlap: (P,) float in [0, 1], IoU of the box decoded at a positive with its ground truth, detached;
            None where the head has no box there. For losses with soft labels or ranks by localisation.
        object: (P,) int64, which ground-truth box (position in the flattened (B, M) list) a positive belongs
            to; None if it was not requested.
        location_overlap: (R,) float, largest IoU of an anchor with any ground truth; None for heads without
            anchors.
        shift: (C,) float, added to every logit of a class before the loss; a loss sets it, no detector does.
        positive_shift: (P,) float, added to the logit of each positive in addition; a loss sets it, no detector does.
    """

    num_classes: int
    image: Tensor
    num_images: int
    positive: Tensor
    value: Tensor | None = None
    ignored: Tensor | None = None
    negative_index: Tensor | None = None
    negative_scale: Tensor | None = None
    verified: Tensor | None = None
    overlap: Tensor | None = None
    object: Tensor | None = None
    location_overlap: Tensor | None = None
    shift: Tensor | None = None
    positive_shift: Tensor | None = None

    @property
    def num_locations(self) -> int:
        """R."""
        return self.image.shape[0]

    @property
    def is_positive(self) -> Tensor:
        """(P,) bool, false at padding."""
        return self.positive >= 0

    @property
    def positive_class(self) -> Tensor:
        """(P,) int64 class of each positive, 0 at padding."""
        return self.positive.clamp(min=0) % self.num_classes

    @property
    def positive_location(self) -> Tensor:
        """(P,) int64 location of each positive, 0 at padding."""
        return torch.div(self.positive.clamp(min=0), self.num_classes, rounding_mode="floor")

    def num_positives(self) -> Tensor:
        """Number of positives as a scalar tensor on the device: the normaliser's summand."""
        return self.is_positive.sum()
