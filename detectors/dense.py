"""Parts that RetinaNet, FCOS and ObjectBox share: pyramid and towers, and the positives of a match."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from afl.losses.sampling import nonzero_padded
from afl.losses.target import PADDING, ClassificationTarget
from detectors.contract import Targets
from detectors.fpn import FeaturePyramid
from detectors.heads import Tower


def pyramid_and_towers(
    backbone: nn.Module,
    *,
    strides: tuple[int, ...],
    channels: int,
    tower_depth: int,
    norm: str,
    pyramid_batch_norm: bool,
    extra_from: str = "backbone",
) -> tuple[FeaturePyramid, Tower, Tower]:
    """The pyramid on a backbone, and the towers of the class branch and the box branch, shared over its levels.

    Args:
        extra_from, pyramid_batch_norm: see :class:`detectors.fpn.FeaturePyramid`.
        tower_depth, norm: see :class:`detectors.heads.Tower`.
    """
    pyramid = FeaturePyramid(
        in_channels=backbone.channels,
        strides=strides,
        channels=channels,
        extra_from=extra_from,
        batch_norm=pyramid_batch_norm,
    )
    class_tower, box_tower = (
        Tower(channels=channels, depth=tower_depth, norm=norm, levels=len(strides)) for _ in range(2)
    )
    return pyramid, class_tower, box_tower


@dataclass(frozen=True)
class Positives:
    """The P positive locations of a batch, padded on an accelerator.

    Attributes:
        location: (P,) int64 position in the flattened (B * A) locations, ``PADDING`` at padding.
        object: (P,) int64 position of the object in the flattened (B * M) list; arbitrary at padding.
        boxes: (P, 4) the object's box.
        labels: (P,) int64 the object's class.
        shape: B and A.
    """

    location: Tensor
    object: Tensor
    boxes: Tensor
    labels: Tensor
    shape: tuple[int, int]

    @classmethod
    def of(cls, match: Tensor, targets: Targets, most: int) -> Positives:
        """
        Args:
            match: (B, A) int64, position of a location's object in its image; negative without an object.
            most: an upper bound of the number of positives.
        """
        batch, places = match.shape
        location = nonzero_padded((match >= 0).flatten(), most)
        at = location.clamp(min=0)
        image = torch.div(at, places, rounding_mode="floor")
        slot = image * targets.labels.shape[1] + match.flatten()[at].clamp(min=0)
        return cls(
            location=location,
            object=slot,
            boxes=targets.boxes.flatten(0, 1)[slot],
            labels=targets.labels.flatten()[slot],
            shape=(batch, places),
        )

    @property
    def present(self) -> Tensor:
        """(P,) bool, false at padding."""
        return self.location >= 0

    @property
    def place(self) -> Tensor:
        """(P,) int64 position of the location in its image, 0 at padding."""
        return self.location.clamp(min=0) % self.shape[1]

    def target(
        self,
        targets: Targets,
        *,
        num_classes: int,
        ignored: Tensor,
        overlap: Tensor | None,
        location_overlap: Tensor | None = None,
    ) -> ClassificationTarget:
        """The target of the map over all B * A locations.

        Args:
            ignored: (B, A) bool; overlap, location_overlap: see :class:`afl.losses.target.ClassificationTarget`.
        """
        batch, places = self.shape
        element = self.location * num_classes + self.labels
        return ClassificationTarget(
            num_classes=num_classes,
            image=torch.arange(batch, device=element.device).repeat_interleave(places),
            num_images=batch,
            positive=torch.where(self.present, element, PADDING),
            ignored=ignored.flatten(),
            verified=targets.verified,
            overlap=overlap,
            object=torch.where(self.present, self.object, PADDING),
            location_overlap=location_overlap,
        )
