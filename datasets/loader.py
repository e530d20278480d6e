"""Which images come in which batch, and the loaders that bring them.

The order of images depends on (seed, epoch) alone and a batch on its step alone, so training continues at step k by asking
for step k: a loader has no state to save, and the number of workers changes nothing.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader

from datasets.batch import Batch, Sample, collate
from datasets.dataset import DetectionDataset
from datasets.errors import DataError
from datasets.index import AnnotationIndex

ORDER_STREAM = 2

# Borders between groups of similar shape: panoramas, 2 : 3, 3 : 4, 4 : 3, 3 : 2, panoramas.
ASPECT_EDGES = (0.6, 0.7, 1.0, 1.42, 1.8)


class EpochPlan:
    """The stream of all epochs' images, cut into batches.

    Every epoch is a new permutation of all images.  Epochs follow each other without a gap: where the batch
    size does not divide an epoch, a batch holds the end of one epoch and the beginning of the next, so that
    every batch is full and every image comes exactly once in each epoch.

    With groups, a batch has images of one group, so that images of similar shape are padded together. At the end of an
    epoch the images that fill no batch of their group share a few mixed batches.

    Args:
        num_images: images of the split.
        batch_size: images per step, all ranks together.
        seed: seed of the order.
        rank, world_size: this process takes the rank-th part of every batch.
        repeat_factors: (num_images,) how often an image comes per epoch on average, at least 1
            (``repeat_factors``); None for once.
        groups: (num_images,) int, the group of each image (``aspect_groups``); None for one group.

    Raises:
        ValueError: no images, or a batch that cannot be shared out evenly.
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
            raise ValueError(f"batch size {batch_size} cannot be shared out to {world_size} processes evenly")
        self.num_images = num_images
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.repeat_factors = repeat_factors
        self.groups = groups
        self._starts = [0]
        self._orders: dict[int, np.ndarray] = {}

    @property
    def images_per_epoch(self) -> float:
        """Images in an epoch; with repeat factors their mean over epochs."""
        return float(self.num_images if self.repeat_factors is None else self.repeat_factors.sum())

    def steps(self, epochs: float) -> int:
        """Steps that see at least ``epochs`` epochs."""
        return math.ceil(epochs * self.images_per_epoch / self.batch_size - 1e-9)

    def order(self, epoch: int) -> np.ndarray:
        """Image numbers of one epoch, in order."""
        if epoch not in self._orders:
            rng = np.random.default_rng([ORDER_STREAM, self.seed, epoch])
            numbers = np.arange(self.num_images)
            if self.repeat_factors is not None:
                # The fraction is drawn again in each epoch, so that its mean over epochs is met.
                whole = np.floor(self.repeat_factors)
                more = rng.random(self.num_images) < self.repeat_factors - whole
                numbers = np.repeat(numbers, (whole + more).astype(np.int64))
            # Two epochs can meet in a batch; older ones are not asked for again.
            self._orders = {e: o for e, o in self._orders.items() if e >= epoch - 1}
            order = rng.permutation(numbers)
            self._orders[epoch] = (
                order if self.groups is None else self._grouped(order, self._start(epoch), rng)
            )
        return self._orders[epoch]

    def _grouped(self, order: np.ndarray, start: int, rng: np.random.Generator) -> np.ndarray:
        """``order``, whose first image has position ``start`` in the stream, with every full batch of one group."""
        # The first images complete the batch that the previous epoch has begun.
        begun = -start % self.batch_size
        rest = order[begun:]
        batches, left = [], []
        for group in np.unique(self.groups[rest]):
            own = rest[self.groups[rest] == group]
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

    def batch(self, step: int) -> list[tuple[int, int]]:
        """This rank's (epoch, image number) pairs of one step."""
        share = self.batch_size // self.world_size
        first = step * self.batch_size + self.rank * share
        return [self._at(position) for position in range(first, first + share)]

    def _at(self, position: int) -> tuple[int, int]:
        if self.repeat_factors is None:
            epoch, offset = divmod(position, self.num_images)
        else:
            while self._starts[-1] <= position:
                self._start(len(self._starts))
            epoch = int(np.searchsorted(self._starts, position, side="right")) - 1
            offset = position - self._starts[epoch]
        return epoch, int(self.order(epoch)[offset])


def aspect_groups(index: AnnotationIndex) -> np.ndarray:
    """Group of each image (N,) by width / height, for ``EpochPlan``: photographs mostly have sides of 3 : 2 or 4 : 3."""
    return np.digitize(index.widths / index.heights, ASPECT_EDGES)


def repeat_factors(
    index: AnnotationIndex, threshold: float = 0.001, *, count_instances: bool = False
) -> np.ndarray:
    """Repeat factor of each image (N,): the largest max(1, sqrt(threshold / f_c)) over its classes c.

    Args:
        index: the training split; crowd regions and difficult objects do not count.
        threshold: classes with a smaller frequency f_c are repeated.
        count_instances: False: f_c is the share of images that show class c (Gupta et al. 2019, LVIS, section 5.2).
            True: f_c is the geometric mean of that share and the share of all instances that belong to class c
            (instance-aware repeat factor sampling, Yaman et al. 2023).
    """
    kept = ~(index.crowd | index.difficult)
    image_numbers = np.repeat(np.arange(len(index)), np.diff(index.offsets))[kept]
    labels = index.labels[kept]
    pairs = np.unique(np.stack([image_numbers, labels]), axis=1)
    share = np.bincount(pairs[1], minlength=index.num_classes) / len(index)
    if count_instances:
        instances = np.bincount(labels, minlength=index.num_classes)
        share = np.sqrt(share * instances / max(len(labels), 1))
    factor_of_class = np.sqrt(np.maximum(1.0, threshold / np.maximum(share, 1e-12)))
    factors = np.ones(len(index))
    np.maximum.at(factors, pairs[0], factor_of_class[pairs[1]])
    return factors


def make_train_loader(
    dataset: DetectionDataset,
    plan: EpochPlan,
    *,
    start_step: int = 0,
    num_steps: int | None = None,
    num_workers: int = 0,
    pin_memory: bool = False,
    divisors: tuple[int, int] = (32, 32),
) -> Iterable[Batch]:
    """Batches of steps start_step, start_step + 1, ...: ``num_steps`` of them, or without end.

    Args:
        dataset: the training split.
        plan: which images come when.
        start_step: first step, so that an interrupted training goes on where it was.
        num_steps: number of batches, None for no end.
        num_workers: loader processes; the batches do not depend on it.
        pin_memory: page-locked batches, for copies to a GPU.
        divisors: of padded sides, see :func:`datasets.batch.collate`.
    """
    stop = None if num_steps is None else start_step + num_steps
    return _loader(dataset, _Steps(plan, start_step, stop), num_workers, pin_memory, divisors)


def make_eval_loader(
    dataset: DetectionDataset,
    batch_size: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    pin_memory: bool = False,
    divisors: tuple[int, int] = (32, 32),
) -> Iterable[Batch]:
    """Batches that show each image exactly once, over all ranks together; the last one may be smaller."""
    mine = [(0, i) for i in range(rank, len(dataset), world_size)]
    batches = [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
    return _loader(dataset, batches, num_workers, pin_memory, divisors)


class _Steps:
    """Keys (epoch, image number, step) of the plan's batches from one step on, afresh at each iteration."""

    def __init__(self, plan: EpochPlan, start: int, stop: int | None) -> None:
        self.plan, self.start, self.stop = plan, start, stop

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        steps = itertools.count(self.start) if self.stop is None else range(self.start, self.stop)
        for step in steps:
            yield [(epoch, i, step) for epoch, i in self.plan.batch(step)]


def _loader(
    dataset: DetectionDataset,
    batches: Iterable[Sequence[tuple[int, ...]]],
    num_workers: int,
    pin_memory: bool,
    divisors: tuple[int, int],
) -> Iterable[Batch]:
    loader: DataLoader[Batch] = DataLoader(
        _OrReason(dataset),
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=partial(_collate_or_reason, divisors=divisors),
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
        multiprocessing_context=_start_method() if num_workers else None,
        # The loader draws a seed for its workers at each start; from the global generator that would make a
        # resumed training differ from an uninterrupted one.
        generator=torch.Generator().manual_seed(0),
    )
    return _OrError(loader)


def _start_method() -> str | None:
    """How workers are started: None for the platform's usual way. A process of joblib's has a way of its own as its default,
    which starts no workers of a loader."""
    if multiprocessing.get_start_method(allow_none=True) != "loky":
        return None
    return "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"


class _OrReason:
    """Samples; in place of one that cannot be read, why.

    As an exception it would come out of a worker as another one, wrapped in the text of a stack trace.
    """

    def __init__(self, dataset: DetectionDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, ...]) -> Sample | str:
        try:
            return self.dataset[key]
        except DataError as error:
            return str(error)


def _collate_or_reason(samples: Sequence[Sample | str], divisors: tuple[int, int]) -> Batch | str:
    reason = next((sample for sample in samples if isinstance(sample, str)), None)
    return collate(samples, divisors) if reason is None else reason


class _OrError:
    """The loader's batches, anew at each iteration.

    Raises:
        DataError: a sample cannot be read.
    """

    def __init__(self, loader: DataLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:
            if isinstance(batch, str):
                raise DataError(batch)
            yield batch


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(0)
    # A cluster, a terminal or a container signals all processes of a job at once: what is done about it is the main
    # process's business, which would fail without its workers before it has saved.
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_told, args=(os.getppid(),), daemon=True).start()


def _end_when_told(main: int) -> None:
    """End this process at a SIGTERM of the main one, which ends its workers so, and at no other's."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != main:
        pass
    os._exit(0)
