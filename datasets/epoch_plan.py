"""The images of each batch.

The order of images depends only on (seed, epoch), and a batch only on its step.  Training continues at step k by requesting
step k: there is no state to save, and the number of workers does not matter.
"""

from __future__ import annotations

import numpy as np

from datasets.index import AnnotationIndex
from datasets.statistics import ClassStatistics

ORDER_STREAM = 2  # see dataset.py

# Limits of width / height between groups: panoramas, 2 : 3, 3 : 4, 4 : 3, 3 : 2, panoramas.
ASPECT_EDGES = (0.6, 0.7, 1.0, 1.42, 1.8)


class EpochPlan:
    """The stream of all epochs' images, cut into batches.

    Every epoch is a new permutation of all images, and contains each image exactly once.  Every batch is full: if the
    batch size does not divide an epoch, a batch contains the end of one epoch and the beginning of the next.

    With groups, a batch has images of one group, so that images of similar shape are padded together.  At the end of an
    epoch, the images that do not fill a batch of their group share a few mixed batches.

    Args:
        num_images: images of the split.
        batch_size: images per step, all ranks together.
        seed: seed of the order.
        rank, world_size: this process takes the rank-th part of every batch.
        repeat_factors: (num_images,) mean number of occurrences of each image in an epoch, at least 1
            (``repeat_factors``); None for 1.
        groups: (num_images,) int, the group of each image (``aspect_groups``); None for one group.

    Raises:
        ValueError: there are no images, or the ranks cannot have equal parts of a batch.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        repeat_factors: np.ndarray | None = None,
        groups: np.ndarray | None = None,
    ) -> None:
        if num_images < 1:
            raise ValueError("the training split has no images")
        if batch_size < 1 or batch_size % world_size:
            raise ValueError(f"batch size {batch_size} cannot be divided evenly among {world_size} processes")
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.repeat_factors = repeat_factors
        self.groups = groups
        self._starts = [0]
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def order(self, epoch: int) -> np.ndarray:
        """Image numbers of one epoch, in order."""
        return self._epoch(epoch)[0]

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Image numbers of one epoch, in order, and for each of them how often the epoch contains its image earlier."""
        if epoch not in self._epochs:
            rng = np.random.default_rng([ORDER_STREAM, self.seed, epoch])
            numbers = np.arange(self.num_images)
            if self.repeat_factors is not None:
                # The fractional part is drawn in each epoch, so that the mean over epochs is the factor.
                whole = np.floor(self.repeat_factors)
                more = rng.random(self.num_images) < self.repeat_factors - whole
                numbers = np.repeat(numbers, (whole + more).astype(np.int64))
            # Two epochs can share a batch; older ones are not needed again.
            self._epochs = {e: known for e, known in self._epochs.items() if e >= epoch - 1}
            order = rng.permutation(numbers)
            if self.groups is not None:
                order = self._grouped(order, self.groups, self._start(epoch), rng)
            self._epochs[epoch] = order, _repetitions(order)
        return self._epochs[epoch]

    def _grouped(
        self, order: np.ndarray, groups: np.ndarray, start: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Reorder an epoch that begins at position ``start`` of the stream so that every full batch has one group."""
        # The first images complete the last batch of the previous epoch.
        begun = -start % self.batch_size
        rest = order[begun:]
        batches, left = [], []
        for group in np.unique(groups[rest]):
            own = rest[groups[rest] == group]
            full = len(own) // self.batch_size * self.batch_size
            batches += list(own[:full].reshape(-1, self.batch_size))
            left.append(own[full:])
        rng.shuffle(batches)
        return np.concatenate([order[:begun], *batches, *left])

    def _start(self, epoch: int) -> int:
        """Position of an epoch's first image in the stream."""
        if self.repeat_factors is None:
            return epoch * self.num_images
        while len(self._starts) <= epoch:
            self._starts.append(self._starts[-1] + len(self.order(len(self._starts) - 1)))
        return self._starts[epoch]

    def batch(self, step: int) -> list[tuple[int, int, int]]:
        """(Epoch, image number, repetition of the image in the epoch) of each image that this rank has in one step."""
        share = self.batch_size // self.world_size
        first = step * self.batch_size + self.rank * share
        return [self._at(position) for position in range(first, first + share)]

    def _at(self, position: int) -> tuple[int, int, int]:
        if self.repeat_factors is None:
            epoch, offset = divmod(position, self.num_images)
        else:
            while self._starts[-1] <= position:
                self._start(len(self._starts))
            epoch = int(np.searchsorted(self._starts, position, side="right")) - 1
            offset = position - self._starts[epoch]
        order, repetitions = self._epoch(epoch)
        return epoch, int(order[offset]), int(repetitions[offset])


def _repetitions(order: np.ndarray) -> np.ndarray:
    """For each entry, how often the same number occurs before it."""
    by_number = np.argsort(order, kind="stable")
    first = np.searchsorted(order[by_number], order[by_number])
    earlier = np.empty_like(order)
    earlier[by_number] = np.arange(len(order)) - first
    return earlier


def aspect_groups(index: AnnotationIndex) -> np.ndarray:
    """Group of each image (N,) by width / height, for ``EpochPlan``; most photographs have sides of 3 : 2 or 4 : 3."""
    return np.digitize(index.widths / index.heights, ASPECT_EDGES)


def repeat_factors(
    index: AnnotationIndex, threshold: float = 0.001, *, count_instances: bool = False
) -> np.ndarray:
    """Repeat factor of each image (N,): the largest max(1, sqrt(threshold / f_c)) over its classes c.

    Args:
        index: the training split; crowd regions and difficult objects do not count.
        threshold: classes with a smaller frequency f_c are repeated.
        count_instances: if False, f_c is the share of images that show class c (Gupta et al. 2019, LVIS, section 5.2).
            If True, f_c is the geometric mean of that share and the share of all instances that belong to class c
            (instance-aware repeat factor sampling, Yaman et al. 2023).
    """
    images, labels = index.image_numbers[index.counted], index.labels[index.counted]
    statistics = ClassStatistics.from_index(index)
    share = statistics.images / len(index)
    if count_instances:
        share = np.sqrt(share * statistics.instances / max(len(labels), 1))
    factor_of_class = np.sqrt(np.maximum(1.0, threshold / np.maximum(share, 1e-12)))
    factors = np.ones(len(index))
    np.maximum.at(factors, images, factor_of_class[labels])
    return factors


def exposure(index: AnnotationIndex, factors: np.ndarray) -> np.ndarray:
    """How many times as often training shows the objects of each class when it repeats images, at the same number of steps.

    The mean factor of the class's objects, divided by the mean factor of the images.

    Args:
        index: the training split; crowd regions and difficult objects do not count.
        factors: repeat factor of each image, (N,).

    Returns:
        (C,) float64; NaN for a class without objects.
    """
    images, labels = index.image_numbers[index.counted], index.labels[index.counted]
    count = np.bincount(labels, minlength=index.num_classes)
    total = np.bincount(labels, weights=factors[images], minlength=index.num_classes)
    return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0) / factors.mean()
