"""Class frequencies, for class weights, frequency groups and reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datasets.index import AnnotationIndex

RARE_IMAGES = 10
COMMON_IMAGES = 100


def frequency_groups(images_per_class: np.ndarray) -> list[str]:
    """The frequency group of each class by LVIS's rule (Gupta et al. 2019).

    A class with at most 10 training images is rare "r", with at most 100 common "c", with more frequent "f".
    """
    return ["r" if n <= RARE_IMAGES else "c" if n <= COMMON_IMAGES else "f" for n in images_per_class]


@dataclass(frozen=True)
class ClassStatistics:
    """Frequency of each class in a training split, without crowd regions and difficult objects.

    Attributes:
        names: (C,) class names.
        instances: (C,) int64 number of objects.
        images: (C,) int64 number of images with at least one object.
        groups: (C,) "r", "c" or "f", from the data set if it defines them, otherwise from ``frequency_groups``.
    """

    names: Sequence[str]
    instances: np.ndarray
    images: np.ndarray
    groups: Sequence[str]

    @classmethod
    def from_index(cls, index: AnnotationIndex) -> ClassStatistics:
        """Count the objects of a split."""
        image_numbers, labels = index.image_numbers[index.counted], index.labels[index.counted]
        instances = np.bincount(labels, minlength=index.num_classes)
        pairs = np.unique(image_numbers * index.num_classes + labels)
        images = np.bincount(pairs % index.num_classes, minlength=index.num_classes)
        groups = list(index.frequency) if index.frequency is not None else frequency_groups(images)
        return cls(tuple(index.category_names), instances, images, groups)
