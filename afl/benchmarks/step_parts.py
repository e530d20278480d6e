"""Measures the parts of one training step in milliseconds, for one detector on LongTail Shapes.

``step_profile`` runs this file as a script, so that it can measure an older checkout of the project with the same code; it only imports
modules that also exist there. Arguments: detector, loss, steps, folder for generated data, and the settings of each variant by name as
JSON (``bf16``, ``channels_last``, ``compile``, ``plain_optimizer``). Variants alternate after each step. The script prints one line of
JSON: milliseconds by variant and part.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import nn

from afl.training.build import bound, build_detector
from afl.training.compose import compose_cell
from afl.training.data import read_data, training_batches
from afl.training.distributed import World
from afl.training.inputs import normalise, targets_of
from afl.training.optimizer import build_optimizer, parameter_groups
from afl.training.precision import network_precision
from detectors.contract import weighted_sum

PARTS = ("input", "normalise", "forward", "losses", "backward", "clip", "optimizer")
WARM_UP = 3


def measure(
    detector_name: str,
    loss: str,
    steps: int,
    cache: str,
    variants: dict[str, list[str]],
    more: Sequence[str] = (),
) -> dict[str, dict[str, float]]:
    """Median milliseconds by variant and part, over ``steps`` steps after three warm-up steps.

    Args:
        more: further overrides of the config.
    """
    torch.set_num_threads(1)
    overrides = [
        "dataset=shapes",
        "initial_weights=null",
        "logger=none",
        f"paths.cache={cache}",
        f"paths.output={cache}",
        *more,
    ]
    config = compose_cell(detector=detector_name, loss=loss, overrides=overrides)
    data = read_data(config)
    works = {name: one_step(config, data, set(settings)) for name, settings in variants.items()}
    clocks: dict[str, list[list[float]]] = {name: [] for name in variants}
    for step in range(WARM_UP + steps):
        for name, work in works.items():
            clock = work()
            if step >= WARM_UP:
                clocks[name].append(clock)
    return {
        name: {
            part: 1e3 * statistics.median(clock[i + 1] - clock[i] for clock in seen)
            for i, part in enumerate(PARTS)
        }
        for name, seen in clocks.items()
    }


def one_step(config, data, settings: set[str]) -> Callable[[], list[float]]:
    """A function that runs a training step with these settings, and returns the time at its start and after each part."""
    torch.manual_seed(0)
    last = "channels_last" in settings
    detector = build_detector(config, data.classes)
    detector.to(memory_format=torch.channels_last if last else torch.contiguous_format).train()
    factory = bound(config.optimizer.factory)
    if "plain_optimizer" in settings:
        optimizer = factory(parameter_groups(detector, config.optimizer.weight_decay))
    else:
        optimizer = build_optimizer(factory, detector, config.optimizer.weight_decay)
    forward = torch.compile(detector, dynamic=False) if "compile" in settings else detector
    # Every step uses the same decoded images; the input benchmark measures decoding.
    stream = iter(training_batches(config, data, World(0, 1, torch.device("cpu")), start_step=0))
    for _ in range(-(-len(data.train) // config.trainer.batch_size)):
        next(stream)

    def work() -> list[float]:
        clock = [time.perf_counter()]
        batch = next(stream)
        clock.append(time.perf_counter())
        images = normalise(batch.images, last)
        clock.append(time.perf_counter())
        with network_precision("cpu", torch.bfloat16 if "bf16" in settings else None):
            outputs = forward(images)
        clock.append(time.perf_counter())
        losses = detector.losses(outputs, targets_of(batch))
        # As in the loop, the maps are freed before their gradients are computed.
        del outputs
        clock.append(time.perf_counter())
        optimizer.zero_grad(set_to_none=True)
        weighted_sum(losses, detector.loss_weights).backward()
        clock.append(time.perf_counter())
        nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
        clock.append(time.perf_counter())
        optimizer.step()
        for classification in detector.classification.values():
            classification.update()
        clock.append(time.perf_counter())
        return clock

    return work


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    chosen_detector, chosen_loss, count, folder, chosen = sys.argv[1:]
    print(json.dumps(measure(chosen_detector, chosen_loss, int(count), folder, json.loads(chosen))))
