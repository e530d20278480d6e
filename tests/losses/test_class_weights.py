"""Class weights compared with Cui et al.'s closed form and with figures for LVIS's counts, and bad input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from afl.losses import ClassWeights, ElementWeights, FrequencyWeights, PositiveScale, class_balanced_weights
from tests.losses.cases import make_info, plain_target

COUNTS = torch.tensor([1400.0, 567.0, 87.0, 12.0, 3.0, 2.0])


@pytest.mark.parametrize("beta", [0.9, 0.99, 0.999, 0.9999])
def test_weights_normalised_over_classes_equal_cui_closed_form_and_sum_to_c(beta):
    effective = (1.0 - beta ** COUNTS.double()) / (1.0 - beta)
    expected = 1.0 / effective / (1.0 / effective).sum() * len(COUNTS)
    weights = class_balanced_weights(COUNTS, beta, normalize="classes")
    torch.testing.assert_close(weights, expected.float(), rtol=1e-6, atol=0)
    assert weights.sum().item() == pytest.approx(len(COUNTS))


@pytest.mark.parametrize(("beta", "ratio"), [(0.9, 10), (0.99, 100), (0.999, 1000), (0.9999, 9936)])
def test_the_ratio_of_one_and_fifty_thousand_instances_equals_the_published_one(beta, ratio):
    weights = class_balanced_weights(torch.tensor([1.0, 50552.0]), beta)
    assert (weights[0] / weights[1]).item() == pytest.approx(ratio, rel=1e-3)


def test_beta_near_one_tends_to_inverse_frequency():
    weights = class_balanced_weights(COUNTS, 1 - 1e-9)
    torch.testing.assert_close(weights, COUNTS[0] / COUNTS, rtol=1e-5, atol=0)


def test_head_normalisation_gives_the_most_frequent_class_a_weight_of_one():
    shuffled = COUNTS[[3, 5, 0, 1, 4, 2]]
    weights = class_balanced_weights(shuffled, 0.999)
    assert weights[2] == 1 and (weights >= 1).all()


@settings(max_examples=100, deadline=None)
@given(
    counts=st.lists(st.integers(0, 10**5), min_size=1, max_size=30),
    beta=st.sampled_from([0.0, 0.9, 0.999, 0.99999]),
    normalize=st.sampled_from(["head", "instances", "classes"]),
    cap=st.sampled_from([None, 1.0, 1.5, 10.0]),
)
def test_weights_are_finite_ordered_capped_and_keep_their_mean(counts, beta, normalize, cap):
    counts = torch.tensor(counts, dtype=torch.float64)
    weights = class_balanced_weights(counts, beta, normalize, cap).double()
    assert weights.isfinite().all() and (weights > 0).all()
    order = counts.argsort()
    assert (weights[order].diff() <= 1e-6).all()
    if cap is not None:
        assert weights.max() <= cap + 1e-6
    if normalize == "classes":
        assert weights.sum().item() == pytest.approx(len(counts), rel=1e-5)
    if normalize == "instances" and counts.sum() > 0:
        assert (weights * counts).sum().item() == pytest.approx(counts.sum().item(), rel=1e-5)


def test_a_class_without_instances_has_the_weight_of_a_single_instance():
    weights = class_balanced_weights(torch.tensor([100.0, 1.0, 0.0]), 0.999)
    assert weights[2] == weights[1]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"beta": 1.0}, "beta"),
        ({"beta": -0.1}, "beta"),
        ({"cap": 0.5}, "cap"),
        ({"normalize": "mean"}, "normalize"),
        ({"instances_per_class": torch.tensor([1.0, float("nan")])}, "instances_per_class"),
        ({"instances_per_class": torch.tensor([-1.0])}, "instances_per_class"),
        ({"instances_per_class": torch.ones(2, 2)}, "instances_per_class"),
    ],
)
def test_bad_arguments_are_named(arguments, word):
    with pytest.raises(ValueError, match=word):
        class_balanced_weights(**({"instances_per_class": COUNTS} | arguments))


def chain_weights(link, target):
    return link(torch.zeros(target.num_locations, target.num_classes), target, ElementWeights(0.25, 2.0))


def test_the_link_weights_positives_by_class_and_soft_ones_in_proportion():
    link = ClassWeights(make_info(COUNTS.tolist()), cap=5.0)
    positive, value = [0, 8, 17, 11], torch.tensor([1.0, 1.0, 0.25, 0.0])
    w = class_balanced_weights(COUNTS, 0.999, "head", 5.0)[[0, 2, 5, 5]]
    hard = chain_weights(link, plain_target(3, 6, positive))
    torch.testing.assert_close(hard.positive, w)
    assert hard.negative_class is None and hard.negative_location is None and hard.negative_element is None
    soft = chain_weights(link, plain_target(3, 6, positive, value=value))
    torch.testing.assert_close(soft.positive, 1 + (w - 1) * value)


def test_deferred_weights_fade_in_geometrically_by_steps():
    link = ClassWeights(make_info(COUNTS.tolist()), cap=5.0, fade_steps=4)
    target = plain_target(1, 6, [5])
    seen = []
    for _ in range(6):
        seen.append(chain_weights(link, target).positive.item())
        link.update()
    assert seen == pytest.approx([1, 5**0.25, 5**0.5, 5**0.75, 5, 5])


def test_positive_scale_is_mean_of_class_weights_over_instances():
    link = PositiveScale(make_info(COUNTS.tolist()), cap=5.0)
    w = class_balanced_weights(COUNTS, 0.999, "head", 5.0)
    mean = sum(n * x for n, x in zip(COUNTS.tolist(), w.tolist(), strict=True)) / COUNTS.sum().item()
    hard = chain_weights(link, plain_target(2, 6, [0, 11]))
    assert hard.positive.tolist() == pytest.approx([mean, mean])
    soft = chain_weights(link, plain_target(2, 6, [0, 11], value=torch.tensor([0.5, 0.0])))
    assert soft.positive.tolist() == pytest.approx([(1 + mean) / 2, 1])


def test_positive_scale_of_weights_with_mean_one_over_instances_is_one():
    link = PositiveScale(make_info(COUNTS.tolist()), normalize="instances", cap=10.0)
    assert link.scale.item() == pytest.approx(1.0)


def test_frequency_weights_without_a_cap_are_the_ratio_of_the_counts():
    weight = FrequencyWeights(make_info(COUNTS.tolist()), power=0.5, cap=None).weight
    torch.testing.assert_close(weight, (1400.0 / COUNTS) ** 0.5)
    assert FrequencyWeights(make_info(COUNTS.tolist()), power=0.5, cap=3.0).weight.max() == 3.0
