"""One cell from config to record: build, resume, train, evaluate, write down."""

from __future__ import annotations

import contextlib
import logging
import random
import resource
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from afl.config import check_values, save_config
from afl.tracking import (
    FAILED,
    FINISHED,
    DamagedRecord,
    MetricsLog,
    NullTracker,
    Picture,
    Record,
    RunKey,
    Tracker,
    environment,
    git_state,
    read_metrics,
    read_record,
    remove_leftovers,
    run_key,
    summarize,
    summary_of_record,
    write_arrays,
    write_bytes,
    write_record,
    write_text,
)
from afl.training.build import bound, build_detector, build_schedule, check_preset, instantiate, loop_options
from afl.training.checkpoint import LAST, CheckpointError, load_latest, set_aside
from afl.training.compiled import compiled_forward, wants_compiled
from afl.training.data import (
    RunData,
    about,
    build_evaluator,
    evaluation_batches,
    read_data,
    training_batches,
)
from afl.training.diagnostics import diagnostic_charts, write_diagnostics
from afl.training.distributed import (
    ProcessLost,
    World,
    barrier,
    from_main,
    join_world,
    names_lost_loader,
    names_lost_process,
    share_buffers,
)
from afl.training.evaluation import TestTime, detect
from afl.training.gradient_dynamics import GradientDynamics
from afl.training.initial_weights import identity, start_from
from afl.training.interruption import Interruption
from afl.training.load import LoadedRun
from afl.training.lock import RunBusy, run_lock
from afl.training.loop import LoopOptions, LoopState, moving_average, restore, train
from afl.training.optimizer import build_optimizer
from afl.training.pictures import contact_sheet
from afl.training.prior import adapt_threshold, initialise_priors
from afl.training.progress import ProgressReport
from datasets.images import read_image

RECORD, CURVES, DETECTIONS, PICTURES = "record.json", "metrics.jsonl", "detections.json", "predictions.png"
DIAGNOSTICS, DAMAGED_RECORD = "diagnostics.json", "record.damaged.json"
LEAVE, STAY = 0, 1  # what the first process tells the others about a run that is busy or finished
LOST = (
    "process {rank} cannot go on: another process of the run has ended, for the reason that it or torchrun gives; the "
    "same command goes on from the last checkpoint"
)
LOADER_LOST = (
    "a process that loads images has ended ({reason}), most often for lack of memory: lower trainer.num_workers or "
    "trainer.batch_size; the same command goes on from the last checkpoint"
)
log = logging.getLogger(__name__)


def run_cell(
    config: DictConfig, *, wait: bool = False, interruption: Interruption | None = None
) -> Record | None:
    """Train and evaluate the cell of ``config``, or pick up what there is of it.

    A finished run is left as it is; an unfinished one goes on from its last checkpoint; a failed one tries again.

    Args:
        wait: when another process is at the same run, wait for it instead of leaving.
        interruption: the signals to obey; None for those that nobody sends.

    Returns:
        The run's record; None where another process is at it.
    """
    check_values(config)
    world = join_world(config.trainer.device)
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    check_preset(config)
    data = read_data(config)
    plain = OmegaConf.to_container(config, resolve=True)
    key = cell_key(config, data)
    folder = Path(config.paths.output) / key.name
    interruption = interruption or Interruption()
    with contextlib.ExitStack() as held:
        held.enter_context(_losses_named(world))
        finished = _finished(folder) if world.is_main else None
        if world.is_main and finished is None:
            # Of many processes only the first one waits here, where the others cannot be asked.
            hear = partial(_leave, interruption, world) if world.size == 1 else (lambda: None)
            try:
                held.enter_context(run_lock(folder, wait=wait, while_waiting=hear))
            except RunBusy as busy:
                log.info("%s", busy)
                from_main(world, LEAVE)
                return None
            finished = _finished(folder, damaged_aside=True)  # by whoever had it before
        if from_main(world, LEAVE if finished else STAY) == STAY:
            if world.is_main:
                remove_leftovers(folder)
            return _run(config, plain, key, folder, data, world, interruption)
    if world.is_main:
        log.info(
            "%s is finished: AP %s (%s)", key.name, _percent(finished.metrics.get("AP")), folder / RECORD
        )
    return finished


def _leave(interruption: Interruption, world: World) -> None:
    """Obey a signal at a place where there is nothing to save."""
    if interruption.asked(world):
        interruption.obey("nothing is lost; the same command goes on from the last checkpoint")


def cell_key(config: DictConfig, data: RunData) -> RunKey:
    """Identity of a run: its resolved config, the content of its data, and what it starts from."""
    plain = OmegaConf.to_container(config, resolve=True)
    named = {part: {**plain[part], "name": plain["cell"][part]} for part in ("dataset", "detector", "loss")}
    return run_key({**plain, **named}, data=f"{data.fingerprint}-{identity(config)}")


def pretrain(config: DictConfig, interruption: Interruption) -> Path:
    """The final checkpoint of ``config``'s run, which is made first if it is not there; who comes second waits."""
    record = run_cell(config, wait=True, interruption=interruption)
    return Path(config.paths.output) / record.key / "checkpoints" / LAST


def wandb_tags(record: Record) -> tuple[str, ...]:
    """What W&B's filters find a run by; AFL's arms say that they are a reconstruction."""
    tags = (record.dataset, record.detector, record.loss, f"seed{record.seed}")
    return (*tags, "reconstruction") if "afl" in record.loss else tags


@contextlib.contextmanager
def _losses_named(world: World) -> Iterator[None]:
    """Say in words what a failure means that only tells of the death of another process.

    Raises:
        ProcessLost: instead of it.
    """
    try:
        yield
    except RuntimeError as error:
        if names_lost_process(error):
            raise ProcessLost(LOST.format(rank=world.rank)) from error
        if names_lost_loader(error):
            reason = " ".join(str(error).split()).rstrip(".")
            raise ProcessLost(LOADER_LOST.format(reason=reason)) from error
        raise


def _finished(folder: Path, *, damaged_aside: bool = False) -> Record | None:
    """The record of a finished run; None where there is none, or nobody can read it.

    Args:
        damaged_aside: rename a file that is no record, under a lock alone.
    """
    if not (folder / RECORD).exists():
        return None
    try:
        record = read_record(folder / RECORD)
    except DamagedRecord as damaged:
        if damaged_aside:
            (folder / RECORD).rename(folder / DAMAGED_RECORD)
            log.warning("%s; it is kept as %s", damaged, folder / DAMAGED_RECORD)
        return None
    return record if record.status == FINISHED else None


def _run(
    config: DictConfig,
    plain: dict[str, Any],
    key: RunKey,
    folder: Path,
    data: RunData,
    world: World,
    interruption: Interruption,
) -> Record:
    """Everything between the lock and the record; a failure leaves a record too, then goes on upwards."""
    torch.manual_seed(config.seed)
    np.random.seed(config.seed)
    random.seed(config.seed)
    record = Record(
        key=key.name,
        status=FAILED,
        dataset=plain["cell"]["dataset"],
        detector=plain["cell"]["detector"],
        loss=plain["cell"]["loss"],
        seed=config.seed,
        config=plain,
        groups=dict(zip(data.statistics.names, data.statistics.groups, strict=True)),
        environment=environment(str(world.device)),
        git=git_state(),
        data_hash=data.fingerprint,
        curves=CURVES,
    )
    tracker: Tracker = NullTracker()
    try:
        if world.is_main:
            for name, text in save_config(config).items():
                write_text(folder / name, text)
            tracker = instantiate(config.logger)(
                directory=folder,
                name=key.slug,
                run_id=key.digest,
                group=f"{record.dataset}-{record.detector}-{record.loss}",
                tags=wandb_tags(record),
                config=plain,
                class_names=data.statistics.names,
            )
        with _losses_named(world):
            record = _train_and_evaluate(config, record, key, folder, data, world, tracker, interruption)
    except BaseException as error:
        if world.is_main and isinstance(error, Exception):
            record = replace(record, error=f"{type(error).__name__}: {error}")
            try:
                write_record(folder / RECORD, record)
            except OSError as second:  # a full disk has no room for the news of it
                log.warning("%s", second)
            tracker.summary(summary_of_record(record))
        tracker.finish(failed=True)
        raise
    if world.is_main:
        write_record(folder / RECORD, record)
    tracker.summary({**record.metrics, **summary_of_record(record)})
    tracker.finish()
    return record


def _resume(folder: Path, key: RunKey, world: World) -> dict[str, Any] | None:
    """The checkpoint to go on from, the same one on every process; None for the beginning."""
    saved, passed_over = load_latest(folder, key.digest)
    step = saved["step"] if saved else 0
    main = from_main(world, step)
    if main != step:
        raise CheckpointError(
            f"process {world.rank} reads step {step} from {folder}, the first one step {main}; is the folder shared by "
            "all machines?"
        )
    barrier(world)
    if passed_over and world.is_main:
        for note in passed_over:
            log.warning("%s", note)
        log.warning("it is kept as %s; the one before, of step %d, is taken", set_aside(folder), step)
    return saved


def _train_and_evaluate(
    config: DictConfig,
    record: Record,
    key: RunKey,
    folder: Path,
    data: RunData,
    world: World,
    tracker: Tracker,
    interruption: Interruption,
) -> Record:
    # ---- what is trained ----------------------------------------------------------------
    options = loop_options(config, num_images=len(data.train), world_size=world.size)
    detector = build_detector(config, data.classes)
    saved = _resume(folder / "checkpoints", key, world)
    # Made before anything is trained: data that the detector cannot learn from stops the run here.
    batches = training_batches(config, data, world, start_step=saved["step"] if saved else 0)
    if saved is None:
        start_from(config, detector, world, partial(pretrain, interruption=interruption))
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    detector.to(world.device, memory_format=layout)
    if saved is None:
        initialise_priors(detector, batches, world, channels_last=options.channels_last)
    optimizer = build_optimizer(bound(config.optimizer.factory), detector, config.optimizer.weight_decay)
    average = moving_average(detector, config.trainer.ema) if config.trainer.ema else None
    state = restore(saved, detector, optimizer, average) if saved else LoopState()
    if saved and world.is_main:
        log.info("%s goes on from step %d of %d", key.name, state.step, options.total_steps)
    del saved
    evaluated = average.module if average is not None else detector

    # ---- training -----------------------------------------------------------------------
    curves = MetricsLog(folder / CURVES, resume_step=state.step) if world.is_main else None

    def report(step: int, figures: dict[str, float]) -> None:
        curves.log(step, figures)
        tracker.log(step, figures)

    def look(step: int) -> None:
        metrics, _ = evaluate_detector(evaluated, config, data, world, folder, options)
        if world.is_main:
            report(step, {f"val/{name}": value for name, value in metrics.items() if name != "per_class"})

    progress = ProgressReport(
        title=key.slug,
        total_steps=options.total_steps,
        start_step=state.step,
        mode=config.trainer.progress if world.is_main else "none",
    )
    try:
        state = train(
            detector=detector,
            batches=batches,
            optimizer=optimizer,
            schedule=build_schedule(config, num_images=len(data.train), total_steps=options.total_steps),
            options=options,
            world=world,
            state=state,
            run_digest=key.digest,
            about=about(record.config, data),
            folder=folder,
            dynamics=GradientDynamics(detector.classification, data.statistics.groups),
            log=report,
            progress=progress,
            evaluate=look,
            interruption=interruption,
            average=average,
            compiled=compiled_forward(detector)
            if wants_compiled(config.trainer.compile, world.device)
            else None,
        )
    finally:
        progress.close()

    # ---- evaluation and record ----------------------------------------------------------
    started = time.perf_counter()
    # The checkpoint of the last step is written: from here on there is nothing to save.
    metrics, pictures = evaluate_detector(
        evaluated, config, data, world, folder, options, interruption=interruption
    )
    seconds = time.perf_counter() - started
    per_class = metrics.pop("per_class")
    if world.is_main:
        report(options.total_steps, {f"val/{name}": value for name, value in metrics.items()})
        curves.close()
        tracker.log_pictures(options.total_steps, pictures)
        tracker.log_charts(options.total_steps, diagnostic_charts(folder / DIAGNOSTICS))
        tracker.log_table(
            options.total_steps,
            "val/per_class",
            ["class", "group", "instances", "AP"],
            [
                [name, record.groups[name], int(count), per_class[name]]
                for name, count in zip(data.statistics.names, data.statistics.instances, strict=True)
            ],
        )
        if pictures:
            sheet = contact_sheet(pictures, data.statistics.names)
            write_bytes(folder / PICTURES, cv2.imencode(".png", sheet[..., ::-1])[1].tobytes())
        log.info("%s  AP %s  in %.0f s", key.slug, _percent(metrics["AP"]), state.seconds + seconds)
    return replace(
        record,
        status=FINISHED,
        protocol=protocol(config, options, detector),
        metrics=metrics,
        per_class=per_class,
        gradient_dynamics=summarize(read_metrics(folder / CURVES)) if world.is_main else {},
        train_seconds=state.seconds,
        eval_seconds=seconds,
        images_per_second=options.total_steps * options.batch_size / max(state.seconds, 1e-9),
        peak_memory_bytes=_peak_memory(world),
        parameters=sum(p.numel() for p in detector.parameters() if p.requires_grad),
        steps=options.total_steps,
    )


def evaluate_detector(
    detector: nn.Module,
    config: DictConfig,
    data: RunData,
    world: World,
    folder: Path,
    options: LoopOptions,
    detections: str = DETECTIONS,
    interruption: Interruption | None = None,
) -> tuple[dict[str, Any], list[Picture]]:
    """Detect on the validation split, write the file ``detections``, and measure.

    Every process looks at its part of the images and leaves its detections in a file; the first one evaluates them all.

    Args:
        interruption: obeyed between images; None to finish whatever happens.

    Returns:
        The evaluator's figures (empty on other processes than the first), and the first images with their boxes.
    """
    adapt_threshold(detector)
    share_buffers(detector, world)
    evaluator = build_evaluator(config, data)
    number = {int(image_id): i for i, image_id in enumerate(data.val.image_ids)}
    pictures: list[Picture] = []
    found = detect(
        detector,
        evaluation_batches(config, data, world),
        device=world.device,
        autocast=options.autocast,
        channels_last=options.channels_last,
        test_time=TestTime(**OmegaConf.to_container(config.trainer.test_time)),
    )
    for batch, boxes in found:
        if interruption is not None and world.size == 1:
            _leave(interruption, world)
        image_ids = batch.image_ids.tolist()
        evaluator.process(image_ids, boxes)
        for image_id, one in zip(image_ids, boxes, strict=True):
            if world.is_main and len(pictures) < config.trainer.pictures:
                pictures.append(_picture(data, number[image_id], image_id, one))
    if world.size > 1:
        # Asked once: processes do not have the same number of batches.
        if interruption is not None:
            _leave(interruption, world)
        parts = [folder / f"detections-{rank}.npz" for rank in range(world.size)]
        write_arrays(parts[world.rank], evaluator.state())
        barrier(world)
        if world.is_main:
            evaluator.merge(parts)
            for part in parts:
                part.unlink()
    metrics: dict[str, Any] = {"per_class": {}}
    if world.is_main:
        write_bytes(folder / detections, evaluator.detections_json())
        metrics = evaluator.evaluate()
        write_diagnostics(folder / detections.replace("detections", "diagnostics"), evaluator)
    barrier(world)
    return metrics, pictures


def evaluate_run(
    run: LoadedRun, folder: Path, detections: str = DETECTIONS, *, on_training_images: bool = False
) -> dict[str, Any]:
    """Evaluate a trained run once more, on the device of its config and in as many processes as there are, which the caller
    leaves (``leave_world``) when nothing more is to be done together.

    Args:
        folder: where the file ``detections`` goes.
        on_training_images: evaluate on these, as they are, without augmentation, in place of the validation images.

    Returns:
        The evaluator's figures; empty on other processes than the first.
    """
    world = join_world(run.config.trainer.device)
    run.detector.to(world.device)
    options = loop_options(run.config, num_images=len(run.data.train), world_size=world.size)
    data = replace(run.data, val=run.data.train) if on_training_images else run.data
    metrics, _ = evaluate_detector(run.detector, run.config, data, world, folder, options, detections)
    return metrics if world.is_main else {}


def _picture(data: RunData, i: int, image_id: int, found) -> Picture:
    chosen = data.val.annotations(i)
    return Picture(
        name=str(image_id),
        pixels=read_image(data.val, i),
        boxes=data.val.boxes[chosen],
        labels=data.val.labels[chosen],
        found_boxes=found.boxes.numpy(),
        found_scores=found.scores.float().numpy(),
        found_labels=found.labels.numpy(),
    )


def protocol(config: DictConfig, options: LoopOptions, detector: nn.Module) -> dict[str, str]:
    """What a caption says beside the cell."""
    trainer = config.trainer
    backbone = config.backbone.get("name") or "tiny"
    start = (
        "ImageNet weights"
        if config.backbone.get("pretrained")
        else config.initial_weights or "random weights"
    )
    return {
        "backbone": f"{backbone}, {start if start != 'shapes' else 'pre-trained on generated images of other classes'}",
        "image size": _image_size(config),
        "schedule": f"{trainer.max_duration} ({options.total_steps} steps of {trainer.batch_size} images), "
        f"{config.schedule.factory['_target_'].split('.')[-1].removesuffix('_schedule')}",
        "optimiser": f"{config.optimizer.factory['_target_'].split('.')[-1]} {config.optimizer.factory.lr:g}",
        "precision": trainer.precision,
        "metric": config.dataset.metric,
    }


def _image_size(config: DictConfig) -> str:
    """Of the network's input at evaluation: the side of all images, the long side, or short side and limit of the long one."""
    resize = config.dataset.eval_transform[config.family]
    if "short_side" not in resize:
        return str(config.dataset.image_size)
    if resize.short_side == resize.max_long_side:
        return str(resize.short_side)
    return f"{resize.short_side}, at most {resize.max_long_side}"


def _peak_memory(world: World) -> int:
    if world.device.type == "cuda":
        return torch.cuda.max_memory_allocated(world.device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _percent(value: float | None) -> str:
    return "undefined" if value is None else f"{100 * value:.1f}"
