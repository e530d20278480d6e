"""Learning-rate schedules as pure functions of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]


def warmed_up(after: Schedule, warmup_steps: int, start: float) -> Schedule:
    """Scale the schedule by a factor that rises linearly from ``start`` to 1 over ``warmup_steps``."""

    def factor(step: int) -> float:
        if step >= warmup_steps:
            return after(step)
        return after(step) * (start + (1 - start) * step / warmup_steps)

    return factor


def step_schedule(*, total_steps: int, milestones: list[float], gamma: float = 0.1) -> Schedule:
    """Multiply by ``gamma`` at each milestone; milestones are fractions of the run."""
    steps = [milestone * total_steps for milestone in milestones]
    return lambda step: gamma ** sum(step >= at for at in steps)


def cosine_schedule(*, total_steps: int, final: float = 0.0) -> Schedule:
    """Half a cosine from 1 to ``final``."""
    return lambda step: final + (1 - final) * (1 + math.cos(math.pi * min(step / total_steps, 1.0))) / 2


def one_cycle_schedule(
    *, total_steps: int, rise: float = 0.25, start: float = 0.04, final: float = 1e-4
) -> Schedule:
    """Cosine rise from ``start`` to 1 over the fraction ``rise`` of the run, then cosine fall to ``final``
    (Smith & Topin, Super-Convergence, 2018)."""
    peak = max(1, round(rise * total_steps))

    def factor(step: int) -> float:
        if step < peak:
            return start + (1 - start) * (1 - math.cos(math.pi * step / peak)) / 2
        progress = min((step - peak) / max(1, total_steps - peak), 1.0)
        return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2

    return factor


def constant_schedule(*, total_steps: int) -> Schedule:
    """The base learning rate throughout."""
    return lambda step: 1.0
