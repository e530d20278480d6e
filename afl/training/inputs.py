"""Converts a batch of the data layer to the arguments of a detector."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from datasets import Batch
from detectors.contract import Targets

# Mean and standard deviation of ImageNet's RGB channels in [0, 255], which torchvision's weights expect.
PIXEL_MEAN, PIXEL_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def normalise(images: Tensor, channels_last: bool) -> Tensor:
    """Convert uint8 images (B, 3, H, W) to float32, normalised with ImageNet's statistics, in the chosen memory format."""
    mean, std = _pixel_statistics(images.device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return images.float().sub_(mean).div_(std).contiguous(memory_format=layout)


@cache
def _pixel_statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (1, 3, 1, 1); cached, because copying them to a device makes the host wait."""
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    return mean, std


def targets_of(batch: Batch) -> Targets:
    """The part of a batch that a detector learns from."""
    return Targets(
        boxes=batch.boxes,
        labels=batch.labels,
        ignored=batch.ignored,
        image_sizes=batch.sizes,
        extreme_points=batch.extreme_points,
        verified=batch.verified,
    )
