"""Properties of every method of soft sampling: its file of conf/loss, certain mistakes, ignored locations and padding."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from afl.losses import (
    ClassificationLoss,
    ClassificationTarget,
    EqualizationV2,
    EqualizedFocus,
    GradientHarmonizing,
    MapInfo,
    PrimeSampleAttention,
    QualityFocalLoss,
    Seesaw,
    VarifocalLoss,
)
from tests.losses.cases import loss_and_gradient, loss_of_config, make_info, random_logits, random_target

COUNTS = [1400.0, 567.0, 87.0, 12.0, 0.0]
LINKS = {
    "ghm": (GradientHarmonizing, {"gamma": 0.0, "alpha": -1.0}),
    "pisa": (PrimeSampleAttention, {}),
    "eqlv2": (EqualizationV2, {"gamma": 0.0, "alpha": -1.0}),
    "efl": (EqualizedFocus, {}),
    "seesaw": (Seesaw, {}),
}
ALONE = {"qfl": QualityFocalLoss, "vfl": VarifocalLoss}
METHODS = [*LINKS, *ALONE]
ONE = torch.tensor(1.0)


def build(method: str, info: MapInfo | None = None) -> torch.nn.Module:
    info = info or make_info(COUNTS)
    if method in ALONE:
        return ALONE[method](info)
    link, options = LINKS[method]
    return ClassificationLoss(info, chain={method: link}, **options)


def boxed(target: ClassificationTarget, seed: int = 0) -> ClassificationTarget:
    """IoU and object for every positive; padding has neither."""
    random = torch.Generator().manual_seed(seed)
    count = len(target.positive)
    return replace(
        target,
        overlap=torch.where(target.is_positive, torch.rand(count, generator=random), torch.nan),
        object=torch.where(target.is_positive, target.positive_class * 100 + torch.arange(count) // 2, -1),
    )


def normalizer_of(target: ClassificationTarget) -> torch.Tensor:
    return target.is_positive.sum().clamp(min=1).float()


@pytest.mark.parametrize("method", METHODS)
def test_config_builds_the_method_with_its_published_defaults(method):
    configured, coded = loss_of_config(make_info(COUNTS), f"+loss={method}"), build(method)
    assert type(configured) is type(coded) and configured.uses_overlap == coded.uses_overlap
    assert configured.uses_overlap == (method in ("pisa", "qfl", "vfl"))
    for scaled in (0, 40):
        target = boxed(random_target(1, positives=30, scaled=scaled, ignored=True))
        logits = random_logits(1, target)
        for _ in range(2):
            results = [
                loss_and_gradient(loss(logits, target, normalizer_of(target)), logits)
                for loss in (configured, coded)
            ]
            assert results[0][0] > 0 and results[0][1].isfinite().all()
            torch.testing.assert_close(*results, rtol=0, atol=0)
            configured.update()
            coded.update()


@pytest.mark.parametrize("method", METHODS)
def test_certain_mistakes_in_both_directions_are_finite(method):
    """All positives have probability 0 and all negatives have probability 1; then the opposite."""
    target = boxed(random_target(5, positives=20))
    for sign in (1.0, -1.0):
        loss = build(method)
        z = torch.full((target.num_locations, target.num_classes), 80.0 * sign)
        z.view(-1)[target.positive[target.is_positive]] *= -1
        for _ in range(3):
            logits = z.clone().requires_grad_()
            value, gradient = loss_and_gradient(loss(logits, target, normalizer_of(target)), logits)
            loss.update()
            assert value.isfinite() and gradient.isfinite().all()
        numbers = [torch.as_tensor(number) for number in loss.statistics().values()]
        assert all(number.isfinite().all() for number in numbers)


@pytest.mark.parametrize("method", METHODS)
def test_ignored_locations_have_no_gradient_and_do_not_affect_others(method):
    """A map with ignored locations equals the map without these locations."""
    target = boxed(random_target(7, ignored=True, positives=20, scaled=0))
    logits = random_logits(7, target)
    value, gradient = loss_and_gradient(build(method)(logits, target, ONE), logits)
    kept = ~target.ignored
    assert (gradient[target.ignored] == 0).all()
    place = kept.cumsum(0) - 1
    moved = place[target.positive_location] * target.num_classes + target.positive_class
    fewer = replace(
        target, image=target.image[kept], positive=torch.where(target.is_positive, moved, -1), ignored=None
    )
    rest = logits.detach()[kept].requires_grad_()
    expected, slope = loss_and_gradient(build(method)(rest, fewer, ONE), rest)
    torch.testing.assert_close((value, gradient[kept]), (expected, slope), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("method", METHODS)
def test_padding_does_not_change_the_loss(method):
    bare = boxed(random_target(8, positives=20, padding=0))
    extra = torch.full((5,), -1)
    padded = replace(
        bare,
        positive=torch.cat([extra, bare.positive]),
        overlap=torch.cat([torch.full((5,), torch.nan), bare.overlap]),
        object=torch.cat([extra, bare.object]),
        negative_index=torch.cat([bare.negative_index, extra]),
        negative_scale=torch.cat([bare.negative_scale, torch.rand(5)]),
    )
    logits = random_logits(8, bare)
    one, other = build(method), build(method)
    for _ in range(2):
        expected = loss_and_gradient(one(logits, bare, ONE), logits)
        actual = loss_and_gradient(other(logits, padded, ONE), logits)
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-18)
        one.update()
        other.update()


@pytest.mark.parametrize("method", METHODS)
def test_evaluation_mode_does_not_change_the_state(method):
    loss, target = build(method).eval(), boxed(random_target(9))
    before = copy.deepcopy(loss.state_dict())
    assert loss(random_logits(9, target), target, ONE).isfinite()
    loss.update()
    assert all(torch.equal(loss.state_dict()[name], value) for name, value in before.items())
