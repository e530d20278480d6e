"""Class frequencies: what class weights, frequency groups and reports are computed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datasets.index import AnnotationIndex

RARE_IMAGES = 10
COMMON_IMAGES = 100


def frequency_groups(images_per_class: np.ndarray) -> list[str]:
    """LVIS's rule (Gupta et al. 2019): a class is rare "r" in at most 10 training images, common "c" in at
    most 100, frequent "f" in more."""
    return ["r" if n <= RARE_IMAGES else "c" if n <= COMMON_IMAGES else "f" for n in images_per_class]


@dataclass(frozen=True)
class ClassStatistics:
    """How often each class occurs in a training split; what is never learnt,
    crowd regions and difficult objects, does not count.

    Attributes:
        names: (C,) class names.
        instances: (C,) int64 annotated objects.
        images: (C,) int64 images with at least one of them.
        groups: (C,) "r", "c" or "f", by ``frequency_groups`` unless the data set brings its own.
    """

    names: Sequence[str]
    instances: np.ndarray
    images: np.ndarray
    groups: Sequence[str]

    @classmethod
    def from_index(cls, index: AnnotationIndex) -> ClassStatistics:
        """Count a split; LVIS's own ``frequency`` field wins over the rule."""
        kept = ~(index.crowd | index.difficult)
        labels = index.labels[kept]
        image_numbers = np.repeat(np.arange(len(index)), np.diff(index.offsets))[kept]
        instances = np.bincount(labels, minlength=index.num_classes)
        pairs = np.unique(image_numbers.astype(np.int64) * index.num_classes + labels)
        images = np.bincount(pairs % index.num_classes, minlength=index.num_classes)
        groups = list(index.frequency) if index.frequency is not None else frequency_groups(images)
        return cls(tuple(index.category_names), instances, images, groups)
