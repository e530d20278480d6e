"""Intervals and p values compared with enumeration, closed forms, the published example of Holm's rule, and simulation."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afl.reporting.inference import difference, holm, sign_flip
from afl.reporting.intervals import estimate

T = {1: 12.7062, 2: 4.302653, 4: 2.776445, 5: 2.570582}  # printed 0.975 quantiles


def enumerated(values) -> float:
    """The share of all assignments of signs, enumerated one by one, in integers of 1e-5."""
    whole = [round(value * 1e5) for value in values]
    signs = list(itertools.product((1, -1), repeat=len(whole)))
    far = sum(abs(sum(s * v for s, v in zip(own, whole, strict=True))) >= abs(sum(whole)) for own in signs)
    return far / len(signs)


@given(st.lists(st.floats(-0.01, 0.01), min_size=1, max_size=9))
def test_sign_flips_equal_their_enumeration(values):
    assert sign_flip(values) == pytest.approx(enumerated(values), abs=1e-12)


def test_equal_signs_are_the_two_extreme_assignments_and_zeros_are_ignored():
    assert sign_flip([0.01, 0.02, 0.03]) == pytest.approx(2 / 2**3)
    assert sign_flip(np.linspace(0.01, 0.02, 54)) == pytest.approx(2 / 2**54)  # too many to enumerate
    assert sign_flip([0.0, 0.0, 0.01]) == pytest.approx(1.0) == sign_flip([0.0])


def test_unpooled_is_the_t_interval_of_the_means_by_unit():
    d = np.random.default_rng(1).normal(0.02, 0.03, (6, 3))
    found = difference(d)
    expected = estimate(d.mean(0).tolist())
    assert found.mean == pytest.approx(expected.mean) and found.unpooled.half == pytest.approx(expected.half)
    assert (found.detectors, found.units, found.unpooled.freedom) == (6, 3, 2)


def test_pooled_adds_the_variances_of_the_detectors():
    d = np.random.default_rng(2).normal(0.02, 0.03, (2, 3))
    within = statistics.fmean(statistics.variance(row) for row in d.tolist())
    found = difference(d).pooled
    assert found.freedom == 4 and found.half == pytest.approx(T[4] * math.sqrt(within / 6), rel=1e-6)


def test_signs_of_a_layout_belong_to_units_or_to_single_differences():
    d = np.random.default_rng(3).normal(0.02, 0.03, (2, 4))
    found = difference(d)
    assert found.p_units == pytest.approx(enumerated(d.mean(0)))
    assert found.p_differences == pytest.approx(enumerated(d.ravel()))


def test_random_detectors_without_noise_are_the_t_interval_of_the_means_by_detector():
    means = [0.01, 0.02, 0.04, 0.05, 0.07, 0.08]
    found = difference(np.tile(np.array(means)[:, None], (1, 3))).random_detectors
    expected = T[5] * statistics.stdev(means) / math.sqrt(6)
    assert found.freedom == 5 and found.half == pytest.approx(expected, rel=1e-6)


def test_random_detectors_of_small_layouts_equal_the_sums_by_hand():
    # Effects of rows 3, of columns 2 and of interaction 1: MS_A 36, MS_B 16, MS_E 4; 48^2 / (36^2 + 16^2 + 4^2) = 1.47.
    found = difference(np.array([[10.0, 4.0], [2.0, 0.0]]) / 100).random_detectors
    assert found.freedom == 1 and found.half == pytest.approx(T[1] * math.sqrt(48 / 4) / 100, rel=1e-5)
    # MS_A and MS_B 3, MS_E 9 q^2 = 1.7424: 4.2576^2 / (3^2 / 2 + 3^2 / 2 + 1.7424^2 / 4) = 1.86; without the residual it is 2.01.
    effect, curved = np.array([1.0, 0.0, -1.0]), np.array([1.0, -2.0, 1.0])
    found = difference((effect[:, None] + effect + 0.44 * np.outer(curved, curved)) / 100).random_detectors
    assert found.freedom == 1 and found.half == pytest.approx(T[1] * math.sqrt(4.2576 / 9) / 100, rel=1e-5)

    # Effects of rows 2, of columns 1.1 and of interaction 1: MS_A 16, MS_B 4.84, MS_E 4; 16.84^2 / (16^2 + 4.84^2 + 4^2) = 0.96.
    found = difference(np.array([[4.1, -0.1], [-1.9, -2.1]]) / 100).random_detectors
    assert found.freedom == 1 and found.half == pytest.approx(T[1] * math.sqrt(16.84 / 4) / 100, rel=1e-5)
    # Four rows by three columns: MS_A 20, MS_B 16, MS_E 0; 36^2 / (20^2 / 3 + 16^2 / 2) = 4.96.
    layout = np.array([3.0, 1.0, -1.0, -3.0])[:, None] + np.array([2.0, 0.0, -2.0])
    found = difference(layout / 100).random_detectors
    assert found.freedom == 4 and found.half == pytest.approx(T[4] * math.sqrt(36 / 12) / 100, rel=1e-5)


def test_equal_differences_have_intervals_without_width():
    found = difference(np.full((2, 2), 0.5))
    assert (found.unpooled.half, found.pooled.half, found.random_detectors.half) == (0.0, 0.0, 0.0)


def test_random_detectors_keep_the_residual_if_it_exceeds_both_mean_squares():
    # A Latin square: rows and columns have the mean 1, so MS_A and MS_B are 0; MS_E is 6 / 4.
    found = difference(np.array([[2.0, 0.0, 1.0], [1.0, 2.0, 0.0], [0.0, 1.0, 2.0]]) / 100).random_detectors
    assert found.freedom == 4 and found.half == pytest.approx(T[4] * math.sqrt(1.5 / 9) / 100, rel=1e-6)
    # Row means 1 and -1, column means 1 and -1, interaction 2: MS_A = MS_B = 4, MS_E = 16.
    found = difference(np.array([[4.0, -2.0], [-2.0, 0.0]]) / 100).random_detectors
    assert found.freedom == 1 and found.half == pytest.approx(T[1] * math.sqrt(16 / 4) / 100, rel=1e-5)


def test_random_detectors_keep_the_larger_mean_square_if_only_one_exceeds_the_residual():
    # Row means 4 and -4, column means 0, interaction 1: MS_A 64, MS_B 0, MS_E 4.
    found = difference(np.array([[5.0, 3.0], [-5.0, -3.0]]) / 100).random_detectors
    assert found.freedom == 1 and found.half == pytest.approx(T[1] * math.sqrt(64 / 4) / 100, rel=1e-5)


def test_intervals_need_two_units_and_random_detectors_need_two_detectors():
    one = difference(np.array([[0.1], [0.2]]))
    assert (one.unpooled, one.pooled, one.random_detectors) == (None, None, None)
    assert difference(np.array([[0.1, 0.2]])).random_detectors is None


def test_holm_multiplies_by_the_remaining_number_and_does_not_decrease():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


@pytest.mark.parametrize(
    ("detectors", "units", "noise", "name"),
    [
        (0.0, 0.0, 0.002, "pooled"),
        (0.0, 0.002, 0.002, "unpooled"),
        (0.002, 0.0, 0.002, "random_detectors"),
        (0.002, 0.002, 0.002, "random_detectors"),
    ],
)
def test_intervals_cover_the_truth_if_their_assumptions_hold(detectors, units, noise, name):
    random, covered, trials = np.random.default_rng(0), 0, 800
    for _ in range(trials):
        d = 0.001 + random.normal(0, noise, (6, 3))
        d += random.normal(0, 1, (6, 1)) * detectors + random.normal(0, 1, (1, 3)) * units
        found = difference(d)
        covered += abs(found.mean - 0.001) <= getattr(found, name).half
    # 95 %: a standard error of 0.8 points; the interval with random detectors is an approximation.
    assert 0.93 <= covered / trials <= 0.99


def test_pooled_intervals_are_too_narrow_for_effects_shared_by_detectors():
    random, covered = np.random.default_rng(0), 0
    for _ in range(400):
        d = random.normal(0, 0.0005, (6, 3)) + random.normal(0, 0.002, (1, 3))
        found = difference(d)
        covered += abs(found.mean) <= found.pooled.half
    assert covered / 400 < 0.75
