"""Means over seeds and their confidence intervals."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Estimate:
    """A mean of n runs and the half-width of its 95 % interval, None for a single run."""

    mean: float
    half: float | None
    n: int

    @property
    def positive(self) -> bool:
        """The whole interval is above zero."""
        return self.half is not None and self.mean - self.half > 0

    @property
    def negative(self) -> bool:
        """The whole interval is below zero."""
        return self.half is not None and self.mean + self.half < 0

    def percent(self, sign: Literal["", "+"] = "") -> str:
        """``12.3 ± 0.4``: times 100, with the half-width if there is one."""
        half = f" ± {100 * self.half:.1f}" if self.half is not None else ""
        return rounded(100 * self.mean, sign) + half


def rounded(value: float, sign: Literal["", "+"] = "", decimals: int = 1) -> str:
    """``value`` with that many decimals, and 0.0 instead of -0.0."""
    return f"{round(value, decimals) + 0.0:{sign}.{decimals}f}"


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean with Student's 95 % interval, t(0.975, n - 1) s / sqrt(n); None without values."""
    n = len(values)
    if n == 0:
        return None
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean=mean, half=None, n=1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return Estimate(mean=mean, half=t_quantile(n - 1) * math.sqrt(variance / n), n=n)


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Estimate | None:
    """Mean of value - baseline over the seeds that both have, with the interval of the differences."""
    return estimate([values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())])


@functools.cache
def t_quantile(freedom: int, probability: float = 0.975) -> float:
    """The t below which Student's distribution with ``freedom`` degrees of freedom has ``probability``."""
    from scipy.special import stdtrit  # slow to import, and a plan needs no interval

    return float(stdtrit(freedom, probability))
