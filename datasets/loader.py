"""Loaders: workers that read, transform and collate the images of each batch."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from datasets.batch import Batch, Sample, collate
from datasets.dataset import DetectionDataset, SampleKey
from datasets.epoch_plan import EpochPlan
from datasets.errors import DataError


def make_train_loader(
    dataset: DetectionDataset,
    plan: EpochPlan,
    *,
    start_step: int = 0,
    num_workers: int = 0,
    pin_memory: bool = False,
    divisors: tuple[int, int] = (32, 32),
) -> Iterable[Batch]:
    """Batches of the steps start_step, start_step + 1, ..., without end.

    Args:
        dataset: the training split.
        plan: the images of each step.
        start_step: the first step, at which an interrupted training continues.
        num_workers: number of loader processes; the batches do not depend on it.
        pin_memory: whether batches are in page-locked memory, for copies to a GPU.
        divisors: divisors of the padded sides, see :func:`datasets.batch.collate`.
    """
    return _loader(dataset, _Steps(plan, start_step), num_workers, pin_memory, divisors)


def make_eval_loader(
    dataset: DetectionDataset,
    batch_size: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Iterable[Batch]:
    """Batches that together, over all ranks, contain each image exactly once; the last one may be smaller."""
    mine = [SampleKey(0, i) for i in range(rank, len(dataset), world_size)]
    batches = [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
    return _loader(dataset, batches, num_workers, pin_memory, divisors=(32, 32))


class _Steps:
    """Keys (epoch, image number, repetition, step) of the plan's batches from step ``start`` on."""

    def __init__(self, plan: EpochPlan, start: int) -> None:
        self.plan, self.start = plan, start

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for step in itertools.count(self.start):
            yield [SampleKey(*place, step) for place in self.plan.batch(step)]


def _loader(
    dataset: DetectionDataset,
    batches: Iterable[list[Any]],
    num_workers: int,
    pin_memory: bool,
    divisors: tuple[int, int],
) -> Iterable[Batch]:
    loader = DataLoader(
        _SampleOrMessage(dataset),
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=partial(_collate_or_message, divisors=divisors),
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
        multiprocessing_context=_start_method() if num_workers else None,
        # The loader draws a seed for its workers at each start. Drawn from the global generator, it would make a resumed
        # training differ from an uninterrupted one.
        generator=torch.Generator().manual_seed(0),
    )
    return _RaiseMessages(loader)


def _start_method() -> str | None:
    """The start method of workers; None for the platform's default.

    In a process of joblib, the default is joblib's own method, which cannot start the workers of a loader.
    """
    if multiprocessing.get_start_method(allow_none=True) != "loky":
        return None
    return "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"


class _SampleOrMessage(Dataset[Sample | str]):
    """Samples, or the message of the error if a sample cannot be read.

    An exception in a worker would reach the main process as another one, which contains a stack trace as text.
    """

    def __init__(self, dataset: DetectionDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: SampleKey) -> Sample | str:
        try:
            return self.dataset[key]
        except DataError as error:
            return str(error)


def _collate_or_message(samples: Sequence[Sample | str], divisors: tuple[int, int]) -> Batch | str:
    message = next((sample for sample in samples if isinstance(sample, str)), None)
    good = [sample for sample in samples if isinstance(sample, Sample)]
    return collate(good, divisors) if message is None else message


class _RaiseMessages:
    """The batches of a loader; a message becomes a DataError."""

    def __init__(self, loader: DataLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:
            if isinstance(batch, str):
                raise DataError(batch)
            yield batch


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(0)
    # A cluster, a terminal or a container signals all processes of a job at once. Workers ignore the signal: the main
    # process handles it, and needs its workers until it has saved its state.
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_on_sigterm_from, args=(os.getppid(),), daemon=True).start()


def _exit_on_sigterm_from(main: int) -> None:
    """End this process at a SIGTERM from the main process, which ends its workers that way; ignore all others."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != main:
        pass
    os._exit(0)
