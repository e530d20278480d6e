"""Sampling-Free compared with torch's cross-entropy, its closed-form gradient, and a search for the best prior."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from afl.losses import (
    ClassWeights,
    ElementCounter,
    FederatedSampling,
    SamplingFree,
    class_balanced_weights,
    count_elements,
)
from tests.losses.cases import dense, dense_losses, loss_and_gradient, make_info, random_logits, random_target

COUNTS = [1400.0, 567.0, 87.0, 12.0, 2.0]
N = torch.tensor(7.0)


@pytest.mark.parametrize("scaled", [0, 20])
def test_without_localization_it_is_cross_entropy(scaled):
    target = random_target(1, ignored=True, verified=True, scaled=scaled)
    logits = random_logits(1, target)
    y, weight = dense(logits, target)
    expected = F.binary_cross_entropy_with_logits(logits, y, weight, reduction="sum") / 7
    ours = loss_and_gradient(SamplingFree(make_info(COUNTS))(logits, target, N), logits)
    torch.testing.assert_close(ours, loss_and_gradient(expected, logits))


@pytest.mark.parametrize("soft", [False, True])
def test_the_value_is_the_box_loss_and_the_gradient_is_scaled_cross_entropy(soft):
    target = random_target(2, ignored=True, soft=soft)
    logits = random_logits(2, target)
    y, weight = dense(logits, target)
    box = torch.tensor(0.37)
    value, gradient = loss_and_gradient(SamplingFree(make_info(COUNTS))(logits, target, N, box), logits)
    assert value.item() == pytest.approx(0.37)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, y, weight, reduction="sum") / 7
    # w (p - y) / N, where the ratio w is a constant; otherwise the gradient would be 0.
    expected = (0.37 / cross_entropy) * weight * (torch.sigmoid(logits) - y) / 7
    torch.testing.assert_close(gradient, expected.detach(), rtol=1e-6, atol=1e-12)


def test_the_normaliser_cancels():
    target = random_target(3)
    logits = random_logits(3, target)
    results = [
        loss_and_gradient(
            SamplingFree(make_info(COUNTS))(logits, target, torch.tensor(n), torch.tensor(2.0)), logits
        )
        for n in (1.0, 50.0)
    ]
    torch.testing.assert_close(*results)


def test_a_batch_without_objects_has_no_gradient():
    target = random_target(4, positives=0)
    logits = random_logits(4, target)
    value, gradient = loss_and_gradient(
        SamplingFree(make_info(COUNTS))(logits, target, N, torch.tensor(0.0)), logits
    )
    assert value == 0 and (gradient == 0).all()


@pytest.mark.parametrize("soft", [False, True])
def test_prior_from_data_has_the_least_cross_entropy_of_all_constant_heads(soft):
    target = random_target(5, ignored=True, verified=True, scaled=30, positives=9, soft=soft)
    positives, elements, images = (number.item() for number in count_elements(torch.zeros(60, 5), target))
    assert images == 2
    loss = SamplingFree(make_info(COUNTS))
    prior = loss.prior_from_data(positives / images, elements / images)

    def cross_entropy(p):
        z = torch.full((60, 5), p, dtype=torch.float64).logit()
        return dense_losses(z, target)[0].sum().item()

    best = cross_entropy(prior)
    assert all(best < cross_entropy(prior * factor) for factor in (0.9, 0.99, 1.01, 1.1))
    assert loss.score_threshold == pytest.approx(5 * prior)


def test_counted_elements_equal_those_of_the_dense_target():
    target = random_target(6, ignored=True, verified=True, scaled=40, positives=9)
    y, weight = dense(torch.zeros(60, 5), target)
    positives, elements, images = count_elements(torch.zeros(60, 5), target)
    assert (positives.item(), images.item()) == (y.sum().item(), 2)
    assert elements.item() == pytest.approx(weight.sum().item(), rel=1e-6)


def test_the_counter_replaces_the_loss_and_returns_means_over_images():
    counter, seen = ElementCounter(make_info(COUNTS)), []
    for seed, positives in enumerate((3, 8)):
        target = random_target(seed, positives=positives, scaled=0)
        seen.append(positives)
        logits = random_logits(seed, target)
        assert counter(logits, target, N, localization=torch.tensor(1.0)) == 0
    assert counter.per_image() == (sum(seen) / 4, 150.0)


def test_the_counter_counts_the_elements_that_the_loss_uses():
    loss = SamplingFree(make_info(COUNTS), chain={"federated": partial(FederatedSampling, size=2)})
    target = random_target(3, positives=4, scaled=0, verified=False)
    logits = random_logits(3, target)
    counter = ElementCounter(loss.info, loss.prepared)
    counter(logits, target, N)
    expected = [float(value) for value in count_elements(logits.detach(), loss.prepared(target))]
    positives, elements = counter.per_image()
    assert (positives, elements) == (expected[0] / expected[2], expected[1] / expected[2])
    assert elements < 150


def test_prior_of_retinanet_on_coco_is_a_share_of_anchors_over_classes():
    """100 of 100,000 anchors are positive, with 80 classes; the score threshold is 1 / 1000."""
    loss = SamplingFree(make_info([1.0] * 80))
    assert loss.prior_from_data(100, 100_000 * 80) == pytest.approx(1.25e-5)
    assert loss.score_threshold == pytest.approx(1e-3)


@pytest.mark.parametrize(("positives", "elements", "prior"), [(0, 5000, 2e-7), (10, 10, 0.5)])
def test_prior_of_maps_without_positives_or_negatives_is_finite(positives, elements, prior):
    assert SamplingFree(make_info([1.0])).prior_from_data(positives, elements) == pytest.approx(prior)


@pytest.mark.parametrize("numbers", [(3, 2), (-1, 5), (0, 0)])
def test_impossible_counts_are_rejected(numbers):
    with pytest.raises(ValueError, match="give no prior"):
        SamplingFree(make_info([1.0])).prior_from_data(*numbers)


def test_prior_survives_saving():
    first, second = SamplingFree(make_info(COUNTS)), SamplingFree(make_info(COUNTS))
    first.prior_from_data(3, 40_000)
    second.load_state_dict(first.state_dict())
    assert second.score_threshold == first.score_threshold == pytest.approx(5 * 3 / 40_000)


def test_a_chain_works_with_the_scaling():
    target = random_target(7)
    logits = random_logits(7, target)
    loss = SamplingFree(make_info(COUNTS), chain={"weights": ClassWeights})
    weights = class_balanced_weights(torch.tensor(COUNTS), cap=5.0)
    expected = dense_losses(logits, target, class_weights=weights)[0].sum() / 7
    _, slope = loss_and_gradient(expected * (0.2 / expected.detach()), logits)
    value, gradient = loss_and_gradient(loss(logits, target, N, torch.tensor(0.2)), logits)
    torch.testing.assert_close(gradient, slope, rtol=1e-6, atol=1e-12)
    assert loss.statistics()["guide"].item() == pytest.approx(0.2 / expected.item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("right", [False, True])
def test_extreme_logits_are_finite(dtype, right):
    target = random_target(8, ignored=True)
    if right:  # so correct that cross-entropy is 0 in single precision
        y, _ = dense(torch.zeros(60, 5), target)
        logits = (160 * y - 80).to(dtype).requires_grad_()
    else:
        logits = torch.linspace(-80, 80, 300).view(60, 5).to(dtype).requires_grad_()
    value, gradient = loss_and_gradient(
        SamplingFree(make_info(COUNTS))(logits, target, N, torch.tensor(1.5)), logits
    )
    assert value.isfinite() and gradient.isfinite().all() and gradient.dtype == dtype
    assert right or value.item() == pytest.approx(1.5)


def counted(rank):
    """Counts of one batch, or of one of its images."""
    target = random_target(9, scaled=0, positives=8, padding=0)
    if rank is not None:
        start = 150 * rank
        inside = (target.positive >= start) & (target.positive < start + 150)
        positive = torch.where(inside, target.positive - start, -1)
        target = replace(target, image=target.image[:30], num_images=1, positive=positive)
    counter = ElementCounter(make_info(COUNTS))
    counter(torch.zeros(target.num_locations, 5), target, N)
    return torch.tensor(counter.per_image())


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save(counted(rank), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_count_like_one(tmp_path: Path):
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)
    for rank in range(2):
        assert torch.equal(torch.load(tmp_path / f"{rank}.pt", weights_only=True), counted(None))
