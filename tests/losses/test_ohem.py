"""Online hard example mining compared with a loop over images that sorts dense losses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from afl.losses import (
    ClassificationLoss,
    ClassWeights,
    OnlineHardExampleMining,
    class_balanced_weights,
    sampling,
)
from tests.losses.cases import (
    dense_losses,
    loss_and_gradient,
    make_info,
    plain_target,
    random_logits,
    random_target,
)

COUNTS = [1400.0, 567.0, 87.0, 12.0, 2.0]
N = torch.tensor(7.0)


def build(*, dense_positives=True, size=10, gamma=0.0, alpha=-1.0, class_weights=False):
    info = replace(make_info(COUNTS), dense_positives=dense_positives)
    chain = {"weights": ClassWeights} if class_weights else {}
    chain["ohem"] = lambda info: OnlineHardExampleMining(info, size=size)
    return ClassificationLoss(info, chain=chain, gamma=gamma, alpha=alpha)


def mined_by_loop(logits, target, size, *, by_location, gamma=0.0, alpha=-1.0, class_weights=None):
    losses, y = dense_losses(logits, target, gamma=gamma, alpha=alpha, class_weights=class_weights)
    total = 0.0
    for image in range(target.num_images):
        rows = [r for r in range(target.num_locations) if target.image[r] == image]
        if target.ignored is not None:
            rows = [r for r in rows if not target.ignored[r]]
        if by_location:
            samples = sorted((losses[r].sum() for r in rows), key=lambda loss: loss.item(), reverse=True)
        else:
            peaks = [losses[r, c] for r in rows for c in range(target.num_classes) if y[r, c] > 0]
            others = [losses[r, c] for r in rows for c in range(target.num_classes) if y[r, c] == 0]
            total = total + sum(peaks)
            samples = sorted(others, key=lambda loss: loss.item(), reverse=True)
        total = total + sum(samples[:size])
    return total / 7.0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("soft", [False, True])
def test_anchors_equal_a_loop_that_sorts_the_summed_losses_of_locations(seed, soft):
    target = random_target(seed, ignored=True, verified=seed % 2 == 0, soft=soft, scaled=12 * (seed % 2))
    logits = random_logits(seed, target)
    ours = loss_and_gradient(build()(logits, target, N), logits)
    theirs = loss_and_gradient(mined_by_loop(logits, target, 10, by_location=True), logits)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("seed", range(4))
def test_heat_maps_equal_a_loop_that_sorts_scaled_elements_and_keeps_peaks(seed):
    target = random_target(seed, ignored=True, verified=seed % 2 == 0, scaled=40)
    logits = random_logits(seed, target)
    ours = loss_and_gradient(build(dense_positives=False)(logits, target, N), logits)
    theirs = loss_and_gradient(mined_by_loop(logits, target, 10, by_location=False), logits)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("by_location", [True, False])
def test_after_other_links_the_weighted_focal_loss_is_used(by_location):
    target = random_target(5, positives=12)
    logits = random_logits(5, target)
    loss = build(dense_positives=by_location, gamma=2.0, alpha=0.25, class_weights=True, size=6)
    options = {
        "gamma": 2.0,
        "alpha": 0.25,
        "class_weights": class_balanced_weights(torch.tensor(COUNTS), cap=5.0),
    }
    theirs = mined_by_loop(logits, target, 6, by_location=by_location, **options)
    torch.testing.assert_close(
        loss_and_gradient(loss(logits, target, N), logits),
        loss_and_gradient(theirs, logits),
        rtol=1e-6,
        atol=1e-9,
    )


def test_easy_positives_are_dropped_on_anchors_and_never_on_heat_maps():
    z = torch.full((20, 5), 3.0)
    z[0, 1] = 8.0  # correct, and therefore the easiest location
    z[0, [0, 2, 3, 4]] = -8.0
    z.requires_grad_()
    target = plain_target(20, 5, [1])
    for dense_positives in (True, False):
        _, gradient = loss_and_gradient(build(dense_positives=dense_positives)(z, target, N), z)
        assert (gradient[0, 1] != 0) == (not dense_positives)


@pytest.mark.parametrize("dense_positives", [True, False])
def test_ignored_locations_are_never_chosen_and_the_others_fill_the_quota(dense_positives):
    target = replace(
        random_target(6, scaled=0), ignored=torch.arange(60) % 3 == 0, positive=torch.full((2,), -1)
    )
    logits = random_logits(6, target)
    with torch.no_grad():
        logits[target.ignored] += 50.0
    _, gradient = loss_and_gradient(build(dense_positives=dense_positives)(logits, target, N), logits)
    assert (gradient[target.ignored] == 0).all()
    chosen = (gradient != 0).view(2, 30, 5)
    assert ((chosen.any(2) if dense_positives else chosen.flatten(1)).sum(1) == 10).all()


def test_class_map_of_objectbox_keeps_the_hardest_claims():
    """Every location is a positive of one class; padding locations are ignored."""
    logits = torch.tensor([[4.0, -4.0], [-3.0, 3.0], [5.0, 5.0]], dtype=torch.float64, requires_grad=True)
    target = plain_target(3, 2, [0, 2, -1], ignored=torch.tensor([False, False, True]))
    info = make_info([5.0, 5.0])
    loss = ClassificationLoss(
        info, chain={"ohem": lambda info: OnlineHardExampleMining(info, size=1)}, gamma=0.0, alpha=-1.0
    )
    value, gradient = loss_and_gradient(loss(logits, target, torch.tensor(1.0)), logits)
    assert value.item() == pytest.approx(2 * torch.nn.functional.softplus(torch.tensor(3.0)).item())
    assert (gradient[[0, 2]] == 0).all() and (gradient[1] != 0).all()


def test_the_path_without_host_synchronisation_gives_the_same_result(monkeypatch):
    target = random_target(9, ignored=True, scaled=30)
    logits = random_logits(9, target)
    loss = build(dense_positives=False)
    expected = loss_and_gradient(loss(logits, target, N), logits)
    monkeypatch.setattr(sampling, "on_host", lambda tensor: False)
    # There are fewer locations than entries in the padded list.
    few = replace(target, ignored=torch.arange(60) > 4, positive=torch.full((2,), -1))
    assert loss_and_gradient(loss(logits, target, N), logits)[0] == expected[0]
    exact = mined_by_loop(logits, few, 10, by_location=False)
    torch.testing.assert_close(loss(logits, few, N), exact)
