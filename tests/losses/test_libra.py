"""IoU-balanced sampling compared with many repetitions of the official procedure and with closed-form probabilities."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from afl.losses import ClassificationLoss, ElementWeights, IouBalancedSampling
from afl.losses.draws import uniform
from afl.losses.libra import selection_probability
from tests.losses.cases import loss_and_gradient, make_info, plain_target, random_logits, random_target

N = torch.tensor(7.0)
FREE = ElementWeights(alpha=-1.0, gamma=0.0)


def link(*, dense_positives=True, **options):
    info = replace(make_info([9.0] * 5), dense_positives=dense_positives)
    return IouBalancedSampling(info, **({"minimum": 6} | options))


def drawn_share(sampling, logits, target, steps=400):
    """Mean over steps of the mask."""
    total = 0.0
    for _ in range(steps):
        total = total + sampling(logits, target, FREE).negative_location.double()
        sampling.update()
    return total / steps


def assert_shares(actual, expected, steps=400):
    """Within five standard deviations of a Bernoulli mean."""
    assert ((actual - expected).abs() <= 5 * (expected * (1 - expected) / steps).sqrt() + 1e-9).all()


@pytest.mark.parametrize("available", [[50, 20, 9], [200, 3, 0], [2, 40, 5], [4, 3, 2], [0, 0, 60]])
def test_probabilities_equal_many_repetitions_of_the_official_procedure(available):
    """Each bin contributes up to a third of 18; the rest is drawn from all remaining candidates."""
    dice, trials, counts = random.Random(0), 3000, [0, 0, 0]
    candidates = [(k, i) for k, number in enumerate(available) for i in range(number)]
    for _ in range(trials):
        chosen = set()
        for k in range(3):
            own = [c for c in candidates if c[0] == k]
            chosen |= set(dice.sample(own, min(6, len(own))))
        left = [c for c in candidates if c not in chosen]
        chosen |= set(dice.sample(left, min(18 - len(chosen), len(left))))
        for k, _ in chosen:
            counts[k] += 1
    expected = [count / trials / max(number, 1) for count, number in zip(counts, available, strict=True)]
    actual = selection_probability(torch.tensor([available], dtype=torch.float64), torch.tensor([18]))
    assert actual[0].tolist() == pytest.approx(expected, abs=0.02)
    # The number of samples is met on average.
    total = (actual[0] * torch.tensor(available)).sum().item()
    assert total == pytest.approx(min(18, sum(available)))


def probability_by_loop(bins_of_candidates, wanted, bins):
    """{candidate: probability} from bins by candidate: equal parts, the rest evenly over the remaining candidates."""
    members = [[c for c, b in bins_of_candidates.items() if b == k] for k in range(bins)]
    share = [min(len(m), wanted / bins) for m in members]
    left = sum(len(m) for m in members) - sum(share)
    rate = min(1.0, (wanted - sum(share)) / left) if left else 0.0
    return {
        c: (share[b] + rate * (len(members[b]) - share[b])) / len(members[b])
        for c, b in bins_of_candidates.items()
    }


def test_anchors_are_drawn_with_probabilities_of_their_iou_bins():
    torch.manual_seed(0)
    # Two positives in the first image, and so 6 negatives; none in the second: the minimum, 4.
    overlap = torch.cat([torch.rand(40) ** 3 * 0.45, torch.rand(40) * 0.1])
    target = replace(
        random_target(0, locations=40, positives=0, scaled=0, ignored=True),
        positive=torch.tensor([3, 27, -1]),
        location_overlap=overlap,
    )
    target.ignored[[0, 5]] = False
    expected = torch.zeros(80, dtype=torch.float64)
    for image, wanted in ((0, 6), (1, 4)):
        free = [r for r in range(40 * image, 40 * image + 40) if not target.ignored[r] and r not in (0, 5)]
        bins = {r: min(2, int(overlap[r].item() / 0.4 * 3)) for r in free}
        for r, p in probability_by_loop(bins, wanted, 3).items():
            expected[r] = p
    share = drawn_share(link(minimum=4), torch.zeros(80, 5), target)
    assert (share[[0, 5]] == 1).all()  # positive locations are kept
    expected[[0, 5]] = 1
    kept = ~target.ignored
    assert_shares(share[kept], expected[kept])


def test_grids_without_iou_are_binned_by_their_relative_score():
    target = random_target(1, locations=40, positives=3, scaled=0, verified=True)
    target.verified[:, 2] = True
    logits = random_logits(1, target).detach()
    logits[40:] -= 3  # the best scores of the two images differ
    positive = set((target.positive[target.is_positive] // 5).tolist())
    expected = torch.ones(80, dtype=torch.float64)
    for image in range(2):
        free = [r for r in range(40 * image, 40 * image + 40) if r not in positive]
        score = {r: torch.sigmoid(logits[r, target.verified[image]]).max().item() for r in free}
        best = max(score.values())
        bins = {r: min(2, int(score[r] / best * 3)) for r in free}
        count = sum(1 for index in target.positive.tolist() if index >= 0 and index // 200 == image)
        for r, p in probability_by_loop(bins, max(3 * count, 6), 3).items():
            expected[r] = p
    assert_shares(drawn_share(link(), logits, target), expected)


def test_heat_maps_are_drawn_from_bins_of_the_tallest_gaussian_and_the_floor():
    target = random_target(2, ignored=True, verified=True, scaled=25, positives=4)
    listed = (target.negative_index >= 0).nonzero()
    target.negative_scale[listed[:5]] = 1.0  # listed, but on the floor
    target.negative_scale[listed[5:]] **= 4  # otherwise hardly any is close to its peak
    tallest = [0.0] * 60
    for index, scale in zip(target.negative_index.tolist(), target.negative_scale.tolist(), strict=True):
        if index >= 0:
            tallest[index // 5] = max(tallest[index // 5], 1 - scale**0.25)
    positive = {index // 5 for index in target.positive.tolist() if index >= 0}
    expected = torch.ones(60, dtype=torch.float64)
    used = set()
    for image in range(2):
        free = [r for r in range(30 * image, 30 * image + 30) if not target.ignored[r] and r not in positive]
        bins = {r: sum(tallest[r] > edge for edge in (0, 1 / 3, 2 / 3)) for r in free}
        used |= set(bins.values())
        count = sum(1 for index in target.positive.tolist() if index >= 0 and index // 150 == image)
        for r, p in probability_by_loop(bins, max(3 * count, 8), 4).items():
            expected[r] = p
    assert used == {0, 1, 2, 3}
    share = drawn_share(link(dense_positives=False, minimum=8), torch.zeros(60, 5), target)
    kept = ~target.ignored
    assert_shares(share[kept], expected[kept])


def test_wrong_classes_at_an_object_of_a_heat_map_are_negatives_without_a_gaussian():
    """All of them at the peak; around it, those of the bin of the object's Gaussian and not those of the floor."""
    rows = 10_000
    target = plain_target(
        rows, 5, [0], negative_index=torch.tensor([5, 10]), negative_scale=torch.tensor([0.5, 0.9])
    )
    z = torch.zeros(rows, 5, requires_grad=True)
    sampling = link(dense_positives=False, minimum=40)
    loss = ClassificationLoss(
        make_info([9.0] * 5), chain={"libra": lambda info: sampling}, gamma=0.0, alpha=-1.0
    )
    for _ in range(5):
        _, gradient = loss_and_gradient(loss(z, target, torch.tensor(1.0)), z)
        assert gradient[0].tolist() == [-0.5, 0.5, 0.5, 0.5, 0.5]
        assert gradient[1].tolist() == [0.25, 0.5, 0.5, 0.5, 0.5]
        torch.testing.assert_close(gradient[2], torch.tensor([0.45, 0.5, 0.5, 0.5, 0.5]))
        assert 10 < (gradient[3:].sum(1) > 0).sum() < 80  # 38 of the floor on average
        sampling.update()


@pytest.mark.parametrize("dense_positives", [True, False])
def test_each_half_of_a_batch_draws_what_the_whole_batch_draws(dense_positives):
    """Two processes therefore sample like one, without communication."""
    target = random_target(4, positives=0, scaled=0)
    whole = link(dense_positives=dense_positives)(torch.zeros(60, 5), target, FREE)
    half = replace(target, image=target.image[:30], num_images=1)
    part = link(dense_positives=dense_positives)(torch.zeros(30, 5), half, FREE)
    assert torch.equal(whole.negative_location[:30], part.negative_location)
    assert torch.equal(whole.negative_location[30:], part.negative_location)


def test_sampling_resumes_exactly_and_does_not_change_the_global_generator():
    target = random_target(5, positives=0, scaled=0)
    first, second = link(), link()
    state = torch.get_rng_state()
    for _ in range(3):
        first(torch.zeros(60, 5), target, FREE)
        first.update()
    assert torch.equal(torch.get_rng_state(), state)
    started = second(torch.zeros(60, 5), target, FREE).negative_location
    second.load_state_dict(first.state_dict())
    masks = [sampling(torch.zeros(60, 5), target, FREE).negative_location for sampling in (first, second)]
    assert torch.equal(*masks) and not torch.equal(masks[1], started)


def test_numbers_are_uniform_and_new_in_every_step():
    position = torch.arange(1 << 16)
    numbers = torch.stack([uniform(position, torch.tensor(step)) for step in range(20)]).double()
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = torch.stack([torch.histc(row, 16, 0, 1) for row in numbers])
    chi_squared = ((counts - 4096) ** 2 / 4096).sum(1)
    assert chi_squared.max() < 45  # 15 degrees of freedom: exceeded once in 10,000 times
    correlation = torch.corrcoef(torch.cat([numbers, numbers.roll(1, 1)]))
    assert (correlation - torch.eye(40)).abs().max() < 0.02  # five standard deviations are 0.0195
