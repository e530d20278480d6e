"""Hard negative mining compared with a loop over images that sorts dense losses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from afl.losses import ClassificationLoss, HardNegativeMining, sampling
from tests.losses.cases import (
    dense_losses,
    loss_and_gradient,
    make_info,
    plain_target,
    random_logits,
    random_target,
)

N = torch.tensor(7.0)


def build(*, dense_positives=True, ratio=3.0, minimum=4, classes=5):
    info = replace(make_info([9.0] * classes), dense_positives=dense_positives)
    chain = {"ssd": lambda info: HardNegativeMining(info, ratio=ratio, minimum=minimum)}
    return ClassificationLoss(info, chain=chain, gamma=0.0, alpha=-1.0)


def mined_by_loop(logits, target, *, by_location, ratio=3.0, minimum=4):
    losses, listed = dense_losses(logits, target)
    total = torch.zeros((), dtype=logits.dtype)
    for image in range(target.num_images):
        rows = [r for r in range(target.num_locations) if target.image[r] == image]
        if target.ignored is not None:
            rows = [r for r in rows if not target.ignored[r]]
        positives = sum(int(listed[r].sum()) for r in rows)
        quota = max(int(ratio * positives), minimum)
        if by_location:
            # The hardness of a location is the probability of its most probable verified class.
            def hardness(r, image=image):
                z = logits[r].detach()
                return (z if target.verified is None else z[target.verified[image]]).max().item()

            total = total + sum(losses[r].sum() for r in rows if listed[r].any())
            free = sorted((r for r in rows if not listed[r].any()), key=hardness, reverse=True)
            total = total + sum(losses[r].sum() for r in free[:quota])
        else:
            elements = [(r, c) for r in rows for c in range(target.num_classes)]
            total = total + sum(losses[e] for e in elements if listed[e])
            negatives = sorted(
                (losses[e] for e in elements if not listed[e]), key=lambda v: v.item(), reverse=True
            )
            total = total + sum(negatives[:quota])
    return total / 7.0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("soft", [False, True])
def test_anchors_equal_a_loop_that_sorts_locations_by_their_largest_probability(seed, soft):
    target = random_target(seed, ignored=True, verified=seed % 2 == 1, soft=soft, scaled=0)
    if target.verified is not None:
        target.verified[:, 0] = True
    logits = random_logits(seed, target)
    ours = loss_and_gradient(build()(logits, target, N), logits)
    theirs = loss_and_gradient(mined_by_loop(logits, target, by_location=True), logits)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("seed", range(4))
def test_heat_maps_equal_a_loop_that_sorts_scaled_elements(seed):
    target = random_target(seed, ignored=True, verified=seed % 2 == 0, scaled=40)
    logits = random_logits(seed, target)
    ours = loss_and_gradient(build(dense_positives=False)(logits, target, N), logits)
    theirs = loss_and_gradient(mined_by_loop(logits, target, by_location=False), logits)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dense_positives", [True, False])
def test_three_negatives_for_each_positive_of_an_image_and_the_minimum_without_any(dense_positives):
    # Four positives in the first image, and none in the second.
    target = replace(random_target(1, scaled=0, positives=0), positive=torch.tensor([0, 6, 12, 18, -1]))
    logits = random_logits(1, target)
    _, gradient = loss_and_gradient(
        build(dense_positives=dense_positives, minimum=5)(logits, target, N), logits
    )
    pushed_down = gradient > 0
    if dense_positives:
        assert pushed_down.any(1).view(2, 30).sum(1).tolist() == [4 + 12, 5]
    else:
        assert pushed_down.view(2, 150).sum(1).tolist() == [12, 5]
    assert (gradient.view(-1)[[0, 6, 12, 18]] < 0).all()


@pytest.mark.parametrize("dense_positives", [True, False])
def test_ratio_one_hundred_equals_plain_cross_entropy(dense_positives):
    target = random_target(2, ignored=True)
    logits = random_logits(2, target)
    plain = ClassificationLoss(make_info([9.0] * 5), gamma=0.0, alpha=-1.0)
    mined = build(dense_positives=dense_positives, ratio=100.0, minimum=200)
    torch.testing.assert_close(
        loss_and_gradient(mined(logits, target, N), logits),
        loss_and_gradient(plain(logits, target, N), logits),
    )


def test_the_path_without_host_synchronisation_gives_the_same_result(monkeypatch):
    target = random_target(9, scaled=30)
    logits = random_logits(9, target)
    with torch.no_grad():
        logits[0] += 20.0  # empty entries of the padded list point to the first location
    loss = build(dense_positives=False)
    expected = loss_and_gradient(loss(logits, target, N), logits)
    monkeypatch.setattr(sampling, "on_host", lambda tensor: False)
    torch.testing.assert_close(loss_and_gradient(loss(logits, target, N), logits), expected)


def test_the_class_map_of_objectbox_keeps_all_claims():
    """Every location is a positive of one class; padding locations are ignored."""
    target = plain_target(4, 5, [2, 5, 11, -1], ignored=torch.tensor([False, False, False, True]))
    logits = random_logits(3, target)
    plain = ClassificationLoss(make_info([9.0] * 5), gamma=0.0, alpha=-1.0)
    mined = build(minimum=0, ratio=0.0)
    torch.testing.assert_close(
        loss_and_gradient(mined(logits, target, N), logits),
        loss_and_gradient(plain(logits, target, N), logits),
    )
