"""Properties of every method of soft sampling: its file of conf/loss, extreme and empty input, and its state."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

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
from tests.losses.cases import loss_and_gradient, make_info, random_logits, random_target

CONF = Path(__file__).parents[2] / "conf"
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
STATEFUL = ["ghm", "eqlv2", "efl", "seesaw"]
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
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(overrides=[f"+loss={method}"])
    configured, coded = instantiate(config.loss)(make_info(COUNTS)), build(method)
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
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scaled", [0, 60])
def test_low_precision_equals_double_up_to_80_over_two_steps(method, dtype, scaled):
    """Logits are the same numbers in both types, and not at the edges of GHM's bins."""
    target = boxed(random_target(4, locations=40, positives=30, scaled=scaled, verified=True))
    random = torch.Generator().manual_seed(4)
    shape = target.num_locations, target.num_classes
    z = (torch.linspace(-80, 80, target.num_locations * target.num_classes)).view(shape)
    z = torch.where(torch.rand(shape, generator=random) < 0.5, z, z / 20).to(dtype)
    results = []
    for kind in (dtype, torch.float64):
        loss, logits = build(method), z.to(kind).requires_grad_()
        for _ in range(2):
            value, gradient = loss_and_gradient(loss(logits, target, normalizer_of(target)), logits)
            loss.update()
        assert gradient.dtype == kind and gradient.isfinite().all() and value.isfinite()
        assert value.dtype == (torch.float64 if kind == torch.float64 else torch.float32)
        results.append((value.double(), gradient.double()))
    (low, low_gradient), (value, gradient) = results
    rounding = 1e-4 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(low, value, rtol=1e-4, atol=0)
    torch.testing.assert_close(low_gradient, gradient, rtol=rounding, atol=1e-9)


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
@pytest.mark.parametrize(
    "kind",
    [
        {"positives": 0, "padding": 0, "scaled": 0},
        {"positives": 0, "padding": 4, "scaled": 0},
        {"positives": 0, "padding": 0, "scaled": 20},
        {"locations": 0, "positives": 0, "padding": 0, "scaled": 0},
    ],
)
def test_batches_without_objects_or_locations_are_finite(method, kind):
    loss, target = build(method), boxed(random_target(6, **kind))
    logits = torch.zeros(target.num_locations, target.num_classes, requires_grad=True)
    for _ in range(2):
        value, gradient = loss_and_gradient(loss(logits, target, ONE), logits)
        loss.update()
        assert value.isfinite() and gradient.isfinite().all()
        assert (value > 0) == (logits.numel() > 0) and (gradient >= 0).all()


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
        target,
        image=target.image[kept],
        positive=torch.where(target.is_positive, moved, -1),
        ignored=None,
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


@pytest.mark.parametrize("method", STATEFUL)
def test_state_survives_saving_and_loading(method, tmp_path):
    first, second, target = build(method), build(method), boxed(random_target(10, positives=40))
    logits = random_logits(10, target)
    for _ in range(3):
        first(logits, target, ONE)
        first.update()
    first(2 * logits, target, ONE)  # half a step, so that pending sums are also saved
    torch.save(first.state_dict(), tmp_path / "loss.pt")
    assert second.eval()(3 * logits, target, ONE) != first.eval()(3 * logits, target, ONE)
    second.load_state_dict(torch.load(tmp_path / "loss.pt", weights_only=True))
    for loss in (first.train(), second.train()):
        loss.update()
    assert torch.equal(first(3 * logits, target, ONE), second(3 * logits, target, ONE))


def half(target: ClassificationTarget, rank: int) -> ClassificationTarget:
    """One of the two images of a batch."""
    count = target.num_locations // 2
    size = count * target.num_classes

    def own(index: torch.Tensor) -> torch.Tensor:
        return torch.where((index >= rank * size) & (index < (rank + 1) * size), index - rank * size, -1)

    return replace(
        target,
        image=target.image[:count],
        num_images=1,
        positive=own(target.positive),
        negative_index=own(target.negative_index),
    )


def train(method: str, rank: int | None) -> dict[str, torch.Tensor]:
    """State after four steps and the logits' gradients: of rank 0 or 1 on its image, or of one process.

    GHM counts on the detectors' normaliser, the mean over ranks of a number that is at least 1 in all ranks together;
    the other methods' gradients are taken before the normaliser.
    """
    loss, gradients = build(method), []
    for step, positives in enumerate([30, 30, 0, 30]):
        target = random_target(20 + step, positives=positives)
        whole = normalizer_of(target)
        if step == 1:  # all objects are in the first image
            middle = target.num_locations * target.num_classes // 2
            target = replace(target, positive=torch.where(target.positive < middle, target.positive, -1))
            whole = normalizer_of(target)
        logits = random_logits(20 + step, target).detach()
        if rank is None:
            normalizer = whole
        else:
            normalizer = target.is_positive.sum().float().clamp(min=1) / 2
            logits = logits.chunk(2)[rank]
            target = half(target, rank)
        logits.requires_grad_()
        _, gradient = loss_and_gradient(loss(logits, target, normalizer), logits)
        gradients.append(gradient / (1 if rank is None else 2) if method == "ghm" else gradient * normalizer)
        loss.update()
    return {"gradients": torch.stack(gradients), **loss.state_dict()}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save({method: train(method, rank) for method in STATEFUL}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path):
    """State and gradients, for every method with state."""
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for method in STATEFUL:
        alone, (first, second) = train(method, None), (rank[method] for rank in ranks)
        together = torch.cat([first.pop("gradients"), second.pop("gradients")], 1)
        torch.testing.assert_close(together, alone.pop("gradients"), rtol=1e-9, atol=1e-15, msg=method)
        for name, value in alone.items():
            torch.testing.assert_close(first[name], value, msg=f"{method}: {name} differs from one process")
            assert torch.equal(first[name], second[name]), f"{method}: {name} differs between ranks"
