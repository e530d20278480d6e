"""The uncertainty of a difference between two losses, from a whole layout of detectors by units.

A *unit* is one data set with one seed; ``d`` (I, J) holds the difference of two losses for I detectors and J units. All three
intervals are for the mean over ``d``. They differ in their model of the noise. With the mean squares of a two-way layout without
replication (Scheffé, The Analysis of Variance, chapters 4 and 7; A: detectors, B: units, E: residual),

    unpooled            variance MS_B / (I J), J - 1 degrees of freedom
                        the t interval of the J means over detectors; units are random, detectors are fixed
    pooled              variance MS_W / (I J), I (J - 1) degrees of freedom, MS_W = (SS_B + SS_E) / (I (J - 1))
                        detectors share one noise and are independent within a unit
    random detectors    variance (MS_A + MS_B - MS_E) / (I J), degrees of freedom by Satterthwaite, rounded down
                        detectors are a sample of detectors, units a sample of units; a negative component counts as zero,
                        and of the intervals that are then possible the widest is taken

P values are two-sided and exact: the share of all assignments of signs whose mean is at least as far from zero as the observed
one. Signs belong to units (the strict reading) or to every single difference (detectors independent, as in ``pooled``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from afl.reporting.intervals import t_quantile

RESOLUTION = 1e-5  # differences in [-1, 1] are rounded to this before signs are flipped


@dataclass(frozen=True)
class Interval:
    """Half-width of a 95 % interval and its degrees of freedom."""

    half: float
    freedom: int


@dataclass(frozen=True)
class Difference:
    """The mean of a layout with its intervals and p values. An interval is None if the layout is too small for it."""

    mean: float
    detectors: int
    units: int
    unpooled: Interval | None
    pooled: Interval | None
    random_detectors: Interval | None
    p_units: float
    p_differences: float


def difference(d: np.ndarray) -> Difference:
    """Mean, intervals and p values of a layout (I, J) of differences, I, J >= 1."""
    d = np.asarray(d, float)
    rows, columns = d.shape
    size = d.size
    of_rows, of_columns = d.mean(1), d.mean(0)
    mean = float(d.mean())
    squares_a = columns * float(((of_rows - mean) ** 2).sum())
    squares_b = rows * float(((of_columns - mean) ** 2).sum())
    squares_e = float(((d - of_rows[:, None] - of_columns + mean) ** 2).sum())
    unpooled = pooled = random = None
    if columns > 1:
        unpooled = _interval(squares_b / (columns - 1) / size, columns - 1)
        pooled = _interval((squares_b + squares_e) / (rows * (columns - 1)) / size, rows * (columns - 1))
        if rows > 1:
            random = _random(
                squares_a / (rows - 1), squares_b / (columns - 1),
                squares_e / ((rows - 1) * (columns - 1)), rows, columns,
            )  # fmt: skip
    return Difference(
        mean, rows, columns, unpooled, pooled, random, sign_flip(of_columns), sign_flip(d.ravel())
    )


def _random(a: float, b: float, e: float, rows: int, columns: int) -> Interval:
    """The interval with random detectors, from the mean squares of detectors, units and residual."""
    size, free_a, free_b = rows * columns, rows - 1, columns - 1
    if e > min(a, b):
        # A negative variance component counts as zero. One mean square is left, with few degrees of freedom: the widest interval
        # that these mean squares allow is the cautious choice.
        left = (
            _interval(a / size, free_a),
            _interval(b / size, free_b),
            _interval(e / size, free_a * free_b),
        )
        return max(left, key=lambda own: own.half)
    total = a + b - e
    below = a**2 / free_a + b**2 / free_b + e**2 / (free_a * free_b)
    return _interval(total / size, max(1, math.floor(total**2 / below)) if below else free_a)


def _interval(variance: float, freedom: int) -> Interval:
    return Interval(t_quantile(freedom) * math.sqrt(variance), freedom)


def sign_flip(values: Sequence[float] | np.ndarray) -> float:
    """Exact two-sided p value that the values are symmetric around zero: of all 2^n assignments of signs, the share whose sum is
    at least as far from zero.

    Values are rounded to ``RESOLUTION``. The distribution of the sum of signed integers is built one value at a time, so that
    the cost grows with n and not with 2^n.
    """
    sizes = np.abs(np.rint(np.asarray(values, float) / RESOLUTION)).astype(int)
    observed = abs(int(np.rint(np.asarray(values, float) / RESOLUTION).sum()))
    middle = int(sizes.sum())
    chance = np.zeros(2 * middle + 1)
    chance[middle] = 1.0
    for size in sizes[sizes > 0]:
        shifted = np.zeros_like(chance)
        shifted[size:] += chance[: len(chance) - size] / 2
        shifted[: len(chance) - size] += chance[size:] / 2
        chance = shifted
    far = np.abs(np.arange(len(chance)) - middle) >= observed
    return min(1.0, float(chance[far].sum()))


def holm(p: Sequence[float]) -> list[float]:
    """P values adjusted for their number (Holm 1979), in the order given: the chance of any false rejection stays below each."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = highest
    return adjusted
