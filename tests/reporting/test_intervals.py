"""Intervals compared with printed t quantiles and closed forms."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afl.reporting.intervals import estimate, paired_difference, rounded, t_quantile

# Student's distribution, two-sided 95 % and 99 %, from printed tables (Abramowitz and Stegun 26.10)
TABLE = [
    (1, 0.975, 12.706),
    (2, 0.975, 4.303),
    (3, 0.975, 3.182),
    (4, 0.975, 2.776),
    (5, 0.975, 2.571),
    (9, 0.975, 2.262),
    (10, 0.975, 2.228),
    (30, 0.975, 2.042),
    (120, 0.975, 1.980),
    (1, 0.995, 63.657),
    (2, 0.995, 9.925),
    (29, 0.995, 2.756),
]


@pytest.mark.parametrize("freedom, probability, expected", TABLE)
def test_quantiles_equal_printed_tables(freedom, probability, expected):
    assert t_quantile(freedom, probability) == pytest.approx(expected, abs=5e-4)


@given(st.floats(0.5001, 0.9999))
def test_quantiles_equal_the_closed_forms_of_one_and_two_degrees(probability):
    assert t_quantile(1, probability) == pytest.approx(math.tan(math.pi * (probability - 0.5)), rel=1e-9)
    q = 2 * probability - 1
    assert t_quantile(2, probability) == pytest.approx(q * math.sqrt(2 / (1 - q * q)), rel=1e-9)


def test_many_degrees_approach_the_normal_distribution():
    assert t_quantile(2001) == pytest.approx(statistics.NormalDist().inv_cdf(0.975), abs=2e-3)


def test_interval_of_two_values_equals_its_closed_form():
    # half-width t |a - b| / 2, t = 12.7062 for one degree of freedom
    result = estimate([0.30, 0.32])
    assert (result.mean, result.n) == (pytest.approx(0.31), 2)
    assert result.half == pytest.approx(12.7062 * 0.01, abs=1e-6)


def test_interval_of_three_values_equals_its_closed_form():
    # 1, 2, 3: s = 1, half-width 4.30265 / sqrt(3)
    result = estimate([1.0, 2.0, 3.0])
    assert (result.mean, result.half) == (
        pytest.approx(2.0),
        pytest.approx(4.302653 / math.sqrt(3), abs=1e-6),
    )


def test_one_value_has_no_interval_and_none_has_no_mean():
    assert (estimate([0.5]).half, estimate([0.5]).positive, estimate([0.5]).negative) == (None, False, False)
    assert estimate([]) is None


@pytest.mark.parametrize(
    ("value", "sign", "decimals", "shown"),
    [
        (-0.04, "", 1, "0.0"),
        (-0.04, "+", 1, "+0.0"),
        (-0.004, "+", 2, "+0.00"),
        (-0.06, "", 1, "-0.1"),
        (0.25, "+", 2, "+0.25"),
    ],
)
def test_a_rounded_value_is_never_negative_zero(value, sign, decimals, shown):
    assert rounded(value, sign, decimals) == shown


def test_an_interval_that_contains_zero_has_no_sign():
    assert not estimate([0.0, 0.0]).positive and not estimate([0.0, 0.0]).negative
    assert estimate([0.1, 0.1]).positive and estimate([-0.1, -0.1]).negative


def test_the_paired_difference_uses_common_seeds():
    difference = paired_difference({0: 0.5, 1: 0.7, 2: 9.0}, {0: 0.4, 1: 0.5, 3: 9.0})
    assert (difference.n, difference.mean) == (2, pytest.approx(0.15))
    assert difference.half == pytest.approx(12.7062 * 0.05, abs=1e-6)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12))
def test_mean_and_spread_equal_the_statistics_module(values):
    result = estimate(values)
    assert result.mean == pytest.approx(statistics.fmean(values), abs=1e-12)
    expected = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    assert result.half == pytest.approx(expected, rel=1e-6, abs=1e-9)
