"""The detections of all images, held as flat arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class DetectionArrays:
    """N detections of all images, by image, in the order in which they were given.

    Arrays, not one dictionary each: at LVIS's size (six million detections) that is 0.15 GiB instead of 3.

    Attributes:
        image: (N,) int32 position in ``GroundTruth.image_ids``, non-decreasing.
        label: (N,) int32 class numbers.
        boxes: (N, 4) (x, y, width, height), COCO's form, in pixels of the original image; float32, or float64
            where the detections came so.
        scores: (N,) float32.
    """

    image: np.ndarray
    label: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, rows: np.ndarray) -> DetectionArrays:
        """The detections of ``rows`` (indices or a mask)."""
        return DetectionArrays(self.image[rows], self.label[rows], self.boxes[rows], self.scores[rows])

    def best_per_class(self, limit: int) -> DetectionArrays:
        """The ``limit`` best scores of each class over all images, the first of equal ones; the order stays as it is."""
        order = np.lexsort((-self.scores, self.label))
        label = self.label[order]
        rank = np.arange(len(self)) - np.searchsorted(label, label)
        keep = np.zeros(len(self), bool)
        keep[order[rank < limit]] = True
        return self.take(keep)

    def largest_count(self) -> int:
        """The largest number of detections of one class in one image, at least 1."""
        _, counts = np.unique(np.stack([self.image, self.label]), axis=1, return_counts=True)
        return int(counts.max(initial=1))

    def best_per_image(self, limit: int) -> DetectionArrays:
        """The ``limit`` best scores of each image, the first of equal ones; the order stays as it is."""
        order = np.lexsort((-self.scores, self.image))
        start = np.searchsorted(self.image, self.image)
        rank = np.arange(len(self)) - start  # lexsort keeps images together, so places in an image agree
        keep = np.zeros(len(self), bool)
        keep[order[rank < limit]] = True
        return self.take(keep)
