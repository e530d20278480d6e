"""Means over seeds and how sure they are."""

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
        """The whole interval lies above zero."""
        return self.half is not None and self.mean - self.half > 0

    @property
    def negative(self) -> bool:
        """The whole interval lies below zero."""
        return self.half is not None and self.mean + self.half < 0

    def percent(self, sign: Literal["", "+"] = "") -> str:
        """``12.3 ± 0.4``: times 100, the half-width where there is one."""
        half = f" ± {100 * self.half:.1f}" if self.half is not None else ""
        return rounded(100 * self.mean, sign) + half


def rounded(value: float, sign: Literal["", "+"] = "") -> str:
    """One decimal; never "-0.0", which says more than is known."""
    return f"{round(value, 1) + 0.0:{sign}.1f}"


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
    """Mean of value - baseline over the seeds that both have, with the interval of those differences."""
    return estimate([values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())])


@functools.cache
def t_quantile(freedom: int, probability: float = 0.975) -> float:
    """The t below which Student's distribution with ``freedom`` degrees has ``probability`` (at least
    1/2)."""
    low, high = 0.0, 1.0
    while _t_distribution(high, freedom) < probability:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_distribution(middle, freedom) < probability else (low, middle)
    return high


def _t_distribution(t: float, freedom: int) -> float:
    """Distribution function at t >= 0, in closed form for whole degrees of freedom (Abramowitz and Stegun
    26.7.3-4)."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term, total = math.cos(angle) if odd else 1.0, 0.0
    for k in range(1, freedom // 2 + 1):
        total += term
        term *= math.cos(angle) ** 2 * (2 * k - 1 + odd) / (2 * k + odd)
    inside = math.sin(angle) * total
    return (1 + (2 / math.pi * (angle + inside) if odd else inside)) / 2
