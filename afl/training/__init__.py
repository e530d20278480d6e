"""Training and evaluation of one run."""

from afl.training.build import ConfigError
from afl.training.run import run_cell
from afl.training.schedule import constant_schedule, cosine_schedule, one_cycle_schedule, step_schedule

__all__ = [
    "ConfigError",
    "constant_schedule",
    "cosine_schedule",
    "one_cycle_schedule",
    "run_cell",
    "step_schedule",
]
