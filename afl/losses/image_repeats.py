"""The request of a loss to repeat training images of rare classes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ImageRepeats:
    """Repeat-factor sampling: images with a class of frequency f below t come sqrt(t / f) times per epoch.

    Attributes:
        images: t times the number of training images.
        count_instances: whether f also counts instances, as in instance-aware repeat-factor sampling.
    """

    images: float
    count_instances: bool
