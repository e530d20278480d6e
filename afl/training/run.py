"""The life of one run, from its config to its record: lock, prepare, train, evaluate, record."""

from __future__ import annotations

import contextlib
import logging
import random
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from omegaconf import DictConfig

from afl.config import CONFIG, check_values, save_config
from afl.tracking import (
    FINISHED,
    MetricsLog,
    NullTracker,
    Record,
    Tracker,
    names_afl,
    read_metrics,
    summarize,
    summary_of_record,
    writable,
    write_record,
)
from afl.training.build import check_preset, instantiate
from afl.training.checkpoint import LAST
from afl.training.data import read_data
from afl.training.diagnostics import diagnostic_charts
from afl.training.distributed import (
    ProcessLost,
    World,
    from_main,
    join_world,
    reports_lost_loader,
    reports_lost_process,
)
from afl.training.ending import ending
from afl.training.evaluation import Evaluation
from afl.training.interruption import Interruption
from afl.training.lock import RunBusy, run_lock
from afl.training.loop import Training, train
from afl.training.observer import RunObserver
from afl.training.pictures import contact_sheet
from afl.training.preparation import prepare
from afl.training.progress import ProgressReport
from afl.training.protocol import protocol
from afl.training.run_identity import CURVES, RECORD, Run, described_run
from datasets.errors import explained
from datasets.files import remove_leftovers, write_bytes, write_text

PICTURES, DIAGNOSTICS = "predictions.png", "diagnostics.json"
LOST = (
    "process {rank} cannot continue: another process of the run has ended, and it or torchrun prints the reason; the "
    "same command continues from the last checkpoint"
)
LOADER_LOST = (
    "a process that loads images has ended ({reason}), usually for lack of memory; lower trainer.num_workers or "
    "trainer.batch_size; the same command continues from the last checkpoint"
)
log = logging.getLogger(__name__)


def run_cell(
    config: DictConfig, *, wait: bool = False, interruption: Interruption | None = None
) -> Record | None:
    """Train and evaluate the run that ``config`` describes, or continue it.

    A finished run is left unchanged. An unfinished or failed run continues from its last checkpoint.

    Args:
        wait: wait while another process works on the same run; otherwise return None.
        interruption: the signals to obey; None to obey none.

    Returns:
        The run's record; None if another process works on the run.
    """
    run = _run_of(config, interruption or Interruption())
    record = _finish(run, wait=wait)
    if record is not None and run.world.is_main:
        log.info("%s", ending(record, run.folder))
    return record


def pretrain(config: DictConfig, interruption: Interruption, *, of_features: bool) -> Path:
    """The final checkpoint of ``config``'s run, which is trained first if it is not finished; concurrent callers wait.

    Args:
        of_features: the run gives all losses their features; otherwise it is the first stage of one loss.
    """
    detector = config.cell.detector
    run = _run_of(config, interruption, title=f"feature pre-training for {detector}" if of_features else None)
    announcement = (
        f"feature pre-training for {detector}: it learns from generated images of other classes ({config.trainer.max_duration}). "
        "This happens once, and every loss starts from the result"
        if of_features
        else f"first stage: {run.title} ({config.trainer.max_duration}), from which the second stage starts"
    )
    _finish(run, wait=True, announcement=announcement)
    return run.folder / "checkpoints" / LAST


def _run_of(config: DictConfig, interruption: Interruption, title: str | None = None) -> Run:
    check_values(config)
    world = join_world(config.trainer.device)
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    check_preset(config)
    return described_run(config, read_data(config), world, interruption, title)


def _finish(run: Run, *, wait: bool, announcement: str = "") -> Record | None:
    """The record of the run, which is trained first if it is not finished; None if another process works on it.

    Args:
        announcement: logged before training.
    """
    world = run.world
    with contextlib.ExitStack() as held:
        held.enter_context(_explaining_lost_processes(world))
        finished = run.finished_record() if world.is_main else None
        if world.is_main and finished is None:
            # With several processes only the first one waits here, so it cannot call a collective.
            while_waiting = (
                partial(run.interruption.leave_if_asked, world) if world.size == 1 else lambda: None
            )
            try:
                held.enter_context(run_lock(run.folder, wait=wait, while_waiting=while_waiting))
            except RunBusy as busy:
                log.info("%s", busy)
                from_main(world, False)
                return None
            # Another process may have finished it before this one got the lock.
            finished = run.finished_record(set_aside=True)
        if not from_main(world, finished is None):  # every process learns whether there is work
            if finished:
                log.info("%s is finished: %s", run.title, run.folder)
            return finished
        if world.is_main:
            remove_leftovers(run.folder)
            if announcement:
                log.info("%s", announcement)
        return _train_and_record(run)


@contextlib.contextmanager
def _explaining_lost_processes(world: World) -> Iterator[None]:
    """Explain a failure that only reports the death of another process.

    Raises:
        ProcessLost: in place of that failure.
    """
    try:
        yield
    except RuntimeError as error:
        if reports_lost_process(error):
            raise ProcessLost(LOST.format(rank=world.rank)) from error
        if reports_lost_loader(error):
            reason = " ".join(str(error).split()).rstrip(".")
            raise ProcessLost(LOADER_LOST.format(reason=reason)) from error
        raise


def _train_and_record(run: Run) -> Record:
    """Prepare, train, evaluate and write the record. A run that fails after its start also writes a record."""
    torch.manual_seed(run.config.seed)
    np.random.seed(run.config.seed)
    random.seed(run.config.seed)
    if run.world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(run.world.device)
    tracker: Tracker = NullTracker()
    # A run that fails during preparation writes nothing, unless an earlier attempt has already written files.
    begun = (run.folder / CONFIG).exists()
    try:
        with _explaining_lost_processes(run.world):
            training, evaluation = prepare(run, partial(pretrain, interruption=run.interruption))
            if run.world.is_main:
                tracker = _tracker(run)
                begun = True
                for name, text in save_config(run.config).items():
                    write_text(run.folder / name, text)
            record = _train_and_evaluate(run, training, evaluation, tracker)
        if run.world.is_main:
            write_record(run.folder / RECORD, record)
        tracker.summary({**record.metrics, **summary_of_record(record)})
    except BaseException as error:
        if run.world.is_main and isinstance(error, Exception) and begun:
            _record_failure(run, error, tracker)
        _only_log_errors(partial(tracker.finish, failed=True))
        raise
    tracker.finish()
    return record


def _tracker(run: Run) -> Tracker:
    cell = run.plain["cell"]
    return instantiate(run.config.logger)(
        directory=run.folder,
        name=run.key.slug,
        run_id=run.key.digest,
        group=f"{cell['dataset']}-{cell['detector']}-{cell['loss']}",
        tags=wandb_tags(cell, run.config.seed),
        config=run.plain,
        class_names=run.data.statistics.names,
    )


def wandb_tags(cell: dict[str, str], seed: int) -> tuple[str, ...]:
    """Tags for W&B's filters; runs of AFL are tagged as a reconstruction."""
    tags = (cell["dataset"], cell["detector"], cell["loss"], f"seed{seed}")
    return (*tags, "reconstruction") if names_afl(cell["loss"]) else tags


def _record_failure(run: Run, error: Exception, tracker: Tracker) -> None:
    """Write the reason of a failure to the record and the tracker; if one of them fails, the other is still written."""
    record = run.unfinished_record(" ".join(f"{type(error).__name__}: {explained(error)}".split()))
    record = Record(**writable(asdict(record)))
    _only_log_errors(partial(write_record, run.folder / RECORD, record))  # fails on a full disk
    _only_log_errors(lambda: tracker.summary(summary_of_record(record)))


def _only_log_errors(call: Callable[[], None]) -> None:
    """Make a call, and only log its failure."""
    try:
        call()
    except Exception as error:
        log.warning("%s", explained(error))


def _train_and_evaluate(run: Run, training: Training, evaluation: Evaluation, tracker: Tracker) -> Record:
    """Train to the last step and evaluate; returns the finished record without writing it."""
    learner, options, is_main = training.learner, training.options, run.world.is_main
    if is_main and learner.step == 0:
        log.info(
            "%s: %d steps of %d images on %s, in %s",
            run.title, options.total_steps, options.batch_size, run.world.device, run.folder,
        )  # fmt: skip
    curves = None
    if is_main:
        curves = MetricsLog(run.folder / CURVES, learner.step, last_step=options.total_steps)
    progress = ProgressReport(
        title=run.title,
        total_steps=options.total_steps,
        start_step=learner.step,
        mode=run.config.trainer.progress if is_main else "none",
    )
    observer = RunObserver(
        curves=curves, tracker=tracker, progress=progress, evaluation=evaluation, learner=learner
    )
    if run.only_evaluates:
        observer.show_curves(run.folder / CURVES)
    try:
        train(replace(training, observer=observer))
    finally:
        progress.close()

    started = time.perf_counter()
    if is_main:
        log.info("%s: evaluating on %d images", run.title, len(run.data.val))
    # The last checkpoint is written, so an interruption during evaluation loses no training.
    metrics, pictures = evaluation(learner.evaluated, run.interruption)
    seconds = time.perf_counter() - started
    per_class = metrics.pop("per_class")
    record = run.unfinished_record()
    images = options.total_steps * options.batch_size
    if is_main:
        observer.write_metrics(options.total_steps, metrics)
        curves.close()
        tracker.log_pictures(options.total_steps, pictures)
        tracker.log_charts(options.total_steps, diagnostic_charts(run.folder / DIAGNOSTICS))
        counts = zip(run.data.statistics.names, run.data.statistics.instances, strict=True)
        tracker.log_table(
            options.total_steps,
            "val/per_class",
            ["class", "group", "instances", "AP"],
            [[name, record.groups[name], int(count), per_class[name]] for name, count in counts],
        )
        if pictures:
            sheet = contact_sheet(pictures, run.data.statistics.names, f"{run.key.slug}: validation images")
            write_bytes(run.folder / PICTURES, cv2.imencode(".png", sheet[..., ::-1])[1].tobytes())
    return replace(
        record,
        status=FINISHED,
        environment={**record.environment, "initial_weights": training.kept["initial_weights"]},
        protocol=protocol(run.config, options),
        metrics=metrics,
        per_class=per_class,
        gradient_dynamics=summarize(read_metrics(run.folder / CURVES)) if is_main else {},
        # A run that only evaluates has the seconds of another run's training.
        train_seconds=0.0 if run.only_evaluates else learner.seconds,
        eval_seconds=seconds,
        images_per_second=None if run.only_evaluates else images / max(learner.seconds, 1e-9),
        peak_memory_bytes=_peak_memory(run.world),
        parameters=sum(p.numel() for p in learner.detector.parameters() if p.requires_grad),
        steps=options.total_steps,
    )


def _peak_memory(world: World) -> int:
    if world.device.type == "cuda":
        return torch.cuda.max_memory_allocated(world.device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
