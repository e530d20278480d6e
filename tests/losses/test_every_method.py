"""Every file of conf/loss compared with a second, simple implementation; with empty input, resumed, and in two processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn

from afl.losses import ClassificationTarget, FederatedSampling, MapInfo
from tests.losses import oracles
from tests.losses.cases import CONF, loss_and_gradient, make_info, random_target
from tests.losses.oracles import Family, Step
from tests.losses.test_ohem import mined_by_loop as hardest_samples
from tests.losses.test_ssd import mined_by_loop as three_to_one

COUNTS = [1400.0, 567.0, 87.0, 12.0, 0.0]
HEAD, INSTANCES = (0.999, "head", 5.0), (0.999, "instances", 5.0)
GATE, BALANCE = (1.0, 0.5, False), (0.99, False, None)
AFL = {"weights": INSTANCES, "gate": GATE}
# The stated computation of each loss, with its settings, by the name of its file.
ARMS: dict[str, Callable[[MapInfo], Step]] = {
    "bce": partial(Family, gamma=0.0, alpha=-1.0),
    "fl": Family,
    "fl_positive": partial(Family, weights=HEAD, scaled=True),
    "cbl": partial(Family, gamma=0.0, alpha=-1.0, weights=HEAD),
    "cbfl": partial(Family, weights=HEAD),
    "cbfl_instances": partial(Family, weights=INSTANCES),
    "cbfl_deferred": partial(Family, weights=HEAD, fade=500),
    "afl": partial(Family, **AFL),
    "afl_per_class": partial(Family, weights=INSTANCES, gate=(1.0, 0.5, True)),
    "afl_balanced": partial(Family, **AFL, balance=BALANCE),
    "afl_anchored": partial(Family, weights=INSTANCES, anchor=1.0),
    "afl_anchored_head": partial(Family, weights=HEAD, anchor=1.0),
    "afl_tempered": partial(Family, weights=INSTANCES, tempered=0.5),
    "afl_tempered_head": partial(Family, weights=HEAD, tempered=0.5),
    "afl_relative": partial(Family, weights=INSTANCES, cap=(1.0, 0.5)),
    "afl_relative_head": partial(Family, weights=HEAD, cap=(1.0, 0.5)),
    "ablation/afl_always": partial(Family, weights=INSTANCES, gate=(1.0, -1e6, False)),
    "ablation/afl_balanced_class": partial(Family, **AFL, balance=(1.0, True, None)),
    "ablation/afl_balanced_fading": partial(Family, **AFL, balance=(0.99, False, 0.5)),
    "ablation/afl_beta99": partial(Family, weights=(0.99, "instances", 5.0), gate=GATE),
    "ablation/afl_beta9999": partial(Family, weights=(0.9999, "instances", 5.0), gate=GATE),
    "ablation/afl_cap2": partial(Family, weights=(0.999, "instances", 2.0), gate=GATE),
    "ablation/afl_cap20": partial(Family, weights=(0.999, "instances", 20.0), gate=GATE),
    "ablation/afl_classes": partial(Family, weights=(0.999, "classes", 5.0), gate=GATE),
    "ablation/afl_head": partial(Family, weights=HEAD, gate=GATE),
    "ablation/afl_no_weights": partial(Family, gate=GATE),
    "ablation/afl_positives": partial(Family, **AFL, gate_negatives=False),
    "ablation/afl_scheduled": partial(Family, weights=INSTANCES, schedule=420),
    "ablation/afl_tau025": partial(Family, weights=INSTANCES, gate=(0.25, 0.5, False)),
    "ablation/afl_tau4": partial(Family, weights=INSTANCES, gate=(4.0, 0.5, False)),
    "ablation/afl_threshold03": partial(Family, weights=INSTANCES, gate=(1.0, 0.3, False)),
    "ablation/cbfl_balanced": partial(Family, weights=INSTANCES, balance=BALANCE),
    "ablation/cbfl_instances_deferred": partial(Family, weights=INSTANCES, fade=500),
    "ablation/cbfl_instances_warmup": partial(Family, weights=INSTANCES, warm_up=210),
    "ablation/cbfl_warmup": partial(Family, weights=HEAD, warm_up=210),
    "ablation/fl_balanced": partial(Family, balance=BALANCE),
    "ablation/fl_balanced_fading": partial(Family, balance=(0.99, False, 0.5)),
    "ablation/fl_warmup": partial(Family, warm_up=210),
    "cbfl_warmup": partial(Family, weights=HEAD, warm_up=210),
    "fl_warmup": partial(Family, warm_up=210),
    "rfs": Family,
    "irfs": Family,
    "afl_irfs": partial(Family, **AFL),
    "afl_anchored_head_irfs": partial(Family, weights=HEAD, anchor=1.0),
    "federated": partial(oracles.Federated, inner=Family),
    "federated_rfs": partial(oracles.Federated, inner=Family),
    "efl_rfs": partial(oracles.ByGradients, focal=True),
    "federated_rfs_efl": partial(oracles.Federated, inner=partial(oracles.ByGradients, focal=True)),
    "logit_adjustment": partial(oracles.Shifted, form="adjustment"),
    "balanced_sigmoid": partial(oracles.Shifted, form="balanced"),
    "ecm": partial(oracles.Shifted, form="ecm"),
    "ldam": oracles.Margin,
    "ldam_drw": partial(oracles.Margin, fade=500),
    "eql": partial(oracles.AtObjects, factor=oracles.spare_rare),
    "acsl": partial(oracles.AtObjects, factor=oracles.spare_unlikely),
    "bags": oracles.Grouped,
    "loce": oracles.Equilibrium,
    "asymmetric": lambda info: oracles.asymmetric,
    "sqrt_weights": partial(oracles.ByFrequency, power=0.5),
    "inverse_weights": partial(oracles.ByFrequency, power=1.0),
    # They train like focal loss; tests/training/test_posthoc.py tests their changes.
    "posthoc_adjustment": Family,
    "ablation/posthoc_tau03": Family,
    "norcal": Family,
    "tau_norm": Family,
    "fracal": Family,
    "crt": Family,
    "ohem": partial(oracles.Mined, mine=partial(hardest_samples, size=10)),
    "ssd": partial(oracles.Mined, mine=partial(three_to_one, ratio=3.0, minimum=4)),
    "libra": oracles.Drawn,
    "ghm": oracles.Harmonised,
    "pisa": oracles.PrimeSamples,
    "eqlv2": partial(oracles.ByGradients, focal=False),
    "efl": partial(oracles.ByGradients, focal=True),
    "seesaw": oracles.Seesaw,
    "qfl": lambda info: oracles.quality,
    "vfl": lambda info: oracles.varifocal,
    "sampling_free": lambda info: oracles.guided,
    "ap_loss": lambda info: oracles.average_precision,
    "dr_loss": lambda info: oracles.ranking,
}
# The maps of a test are too small for the usual numbers of samples.
SMALLER = {
    "ohem": "loss.chain.ohem.size=10",
    "ssd": "loss.chain.ssd.minimum=4",
    "libra": "loss.chain.libra.minimum=6",
}
# They rank boxes or elements of the part of the batch in one process.
RANKED_APART = ("pisa", "ap_loss")
WITHOUT_CHAIN = ("ap_loss", "dr_loss", "vfl")
BOX = 0.8


CONFIGS: dict[str, DictConfig] = {}


def configured(arm: str) -> DictConfig:
    """The configs, composed once; other processes receive them from the first one."""
    if arm not in CONFIGS:
        CONFIGS[arm] = composed(arm)
    return CONFIGS[arm]


def composed(arm: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(overrides=[f"+loss={arm}", *([SMALLER[arm]] if arm in SMALLER else [])])


def build(arm: str, *, dense_positives: bool = True) -> tuple[nn.Module, MapInfo]:
    info = replace(make_info(COUNTS), dense_positives=dense_positives)
    return instantiate(configured(arm).loss)(info), info


def make_target(seed: int, *, dense_positives: bool, positives: int = 12, **options) -> ClassificationTarget:
    """With IoU and object of every positive; heat maps have neighbourhoods and unverified classes."""
    scaled = {} if dense_positives else {"scaled": 30, "verified": True}
    target = random_target(seed, positives=positives, **({"scaled": 0, "ignored": True} | scaled | options))
    if target.verified is not None:
        target.verified[:, 0] = True
    random = torch.Generator().manual_seed(seed)
    count = len(target.positive)
    overlap = 0.05 + 0.95 * torch.rand(count, generator=random)
    return replace(
        target,
        # On a heat map an object has one peak.
        object=torch.where(
            target.is_positive,
            torch.arange(count)
            if not dense_positives
            else target.positive_class * 9 + torch.arange(count) % 2,
            -1,
        ),
        overlap=torch.where(target.is_positive, overlap, torch.nan),
    )


def distinct_logits(seed: int, target: ClassificationTarget) -> Tensor:
    """Logits (R, C) up to +-80, half of them below 4 in size; distinct numbers of bfloat16, so that there are no ties."""
    sizes = torch.arange(1 << 15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()
    random = torch.Generator().manual_seed(seed)
    small, large = (sizes[(sizes > low) & (sizes <= high)] for low, high in ((0.02, 4.0), (4.0, 80.0)))
    signed = torch.cat(
        [
            torch.cat([part, -part])[torch.randperm(2 * len(part), generator=random)][:500]
            for part in (small, large)
        ]
    )
    number = target.num_locations * target.num_classes
    assert number <= len(signed) and signed.unique().numel() == len(signed)
    z = signed[torch.randperm(len(signed), generator=random)[:number]]
    if number:
        z[0], z[-1] = 80.0, -80.0
    return z.view(target.num_locations, target.num_classes)


def normalizer_of(target: ClassificationTarget) -> Tensor:
    return target.is_positive.sum().clamp(min=1).double()


def test_every_loss_has_a_second_computation():
    files = {
        path.relative_to(CONF / "loss").with_suffix("").as_posix() for path in (CONF / "loss").rglob("*.yaml")
    }
    assert set(ARMS) == files


@pytest.mark.parametrize("dense_positives", [True, False], ids=["anchors", "heat_map"])
@pytest.mark.parametrize("arm", ARMS)
def test_three_steps_equal_the_second_computation_up_to_80(arm, dense_positives):
    """In double, single and bfloat16, the numbers being the same in all three; the third batch has no objects."""
    kinds = {torch.float64: 2e-6, torch.float32: 2e-4, torch.bfloat16: 1.5 * 2**-7}
    losses = {dtype: build(arm, dense_positives=dense_positives)[0] for dtype in kinds}
    step = ARMS[arm](build(arm, dense_positives=dense_positives)[1])
    for seed, positives in enumerate((12, 12, 0)):
        target = make_target(seed, dense_positives=dense_positives, positives=positives)
        z = distinct_logits(seed, target)
        n, box = normalizer_of(target), torch.tensor(BOX if positives else 0.0, dtype=torch.float64)
        expected, slope = step(z.double().requires_grad_(), target, n.item(), box.item())
        for dtype, rounding in kinds.items():
            low = z.to(dtype).requires_grad_()
            value, gradient = loss_and_gradient(losses[dtype](low, target, n, localization=box), low)
            losses[dtype].update()
            assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            assert gradient.dtype == dtype
            torch.testing.assert_close(value.double(), expected, rtol=min(rounding, 2e-5), atol=1e-9)
            torch.testing.assert_close(gradient.double(), slope, rtol=rounding, atol=1e-9)


@pytest.mark.parametrize("arm", [arm for arm in ARMS if "/" not in arm and arm not in WITHOUT_CHAIN])
def test_federated_sampling_combines_with_every_chain(arm):
    loss, info = build(arm)
    loss.chain["one_more"] = FederatedSampling(info, size=2)
    step = oracles.Federated(info, inner=ARMS[arm], size=2)
    for seed in range(2):
        target = make_target(seed, dense_positives=True)
        z = distinct_logits(seed, target).double().requires_grad_()
        n, box = normalizer_of(target), torch.tensor(BOX, dtype=torch.float64)
        value, gradient = loss_and_gradient(loss(z, target, n, localization=box), z)
        loss.update()
        expected, slope = step(z, target, n.item(), box.item())
        torch.testing.assert_close(value, expected, rtol=2e-6, atol=1e-9)
        torch.testing.assert_close(gradient, slope, rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("dense_positives", [True, False], ids=["anchors", "heat_map"])
@pytest.mark.parametrize("arm", ARMS)
def test_empty_inputs_are_finite_from_the_first_step(arm, dense_positives):
    for options in ({"padding": 4}, {"padding": 0, "scaled": 0}, {"padding": 0, "scaled": 0, "locations": 0}):
        loss, _ = build(arm, dense_positives=dense_positives)
        target = make_target(3, dense_positives=dense_positives, positives=0, **options)
        for dtype in (torch.float32, torch.bfloat16):
            z = distinct_logits(3, target).to(dtype).requires_grad_()
            value, gradient = loss_and_gradient(
                loss(z, target, torch.tensor(1.0), localization=torch.tensor(0.0)), z
            )
            loss.update()
            assert value.isfinite() and gradient.isfinite().all()
            # DR loss differentiates an expectation, which easy negatives lower.
            assert arm == "dr_loss" or (gradient >= 0).all()
        assert all(torch.as_tensor(number).isfinite().all() for number in loss.statistics().values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("arm", ARMS)
def test_logits_may_be_the_transposed_view_that_a_heat_map_of_one_image_is(arm, dtype):
    """A map (1, C, h, w) becomes (R, C) logits without a copy, with the strides 1 and R."""
    target = make_target(0, dense_positives=False)
    z = distinct_logits(0, target).to(dtype)
    found = []
    for logits in (z.clone(), z.t().contiguous().t()):
        loss, _ = build(arm, dense_positives=False)
        logits.requires_grad_()
        n, box = normalizer_of(target), torch.tensor(BOX)
        found.append(loss_and_gradient(loss(logits, target, n, localization=box), logits))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)


@pytest.mark.parametrize("arm", ARMS)
def test_a_saved_and_loaded_loss_continues_exactly(arm, tmp_path):
    (kept, _), (loaded, _) = build(arm), build(arm)

    def train(loss, seed):
        target = make_target(seed, dense_positives=True)
        z = distinct_logits(seed, target).requires_grad_()
        return loss_and_gradient(loss(z, target, normalizer_of(target), localization=torch.tensor(BOX)), z)

    for seed in range(3):
        train(kept, seed)
        kept.update()
    train(kept, 3)  # half a step: pending sums are saved too
    torch.save(kept.state_dict(), tmp_path / "loss.pt")
    loaded.load_state_dict(torch.load(tmp_path / "loss.pt", weights_only=True))
    for seed in (4, 5):
        kept.update()
        loaded.update()
        for one, other in zip(train(kept, seed), train(loaded, seed), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("arm", ARMS)
def test_evaluation_does_not_change_the_state(arm):
    loss, _ = build(arm)
    target = make_target(0, dense_positives=True)
    call = distinct_logits(0, target), target, normalizer_of(target), torch.tensor(BOX)
    loss(*call)
    loss.update()
    before = {name: value.clone() for name, value in loss.eval().state_dict().items()}
    loss(*call)
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())


def part_of(target: ClassificationTarget, rank: int) -> ClassificationTarget:
    """One of the two images of a batch."""
    count = target.num_locations // 2
    rows, size = slice(rank * count, (rank + 1) * count), count * target.num_classes

    def own(index: Tensor | None) -> Tensor | None:
        if index is None:
            return None
        return torch.where((index >= rank * size) & (index < (rank + 1) * size), index - rank * size, -1)

    return replace(
        target,
        image=target.image[:count],
        num_images=1,
        positive=own(target.positive),
        negative_index=own(target.negative_index),
        ignored=None if target.ignored is None else target.ignored[rows],
        verified=None if target.verified is None else target.verified[rank : rank + 1],
    )


def train(arm: str, rank: int | None, *, dense_positives: bool) -> dict[str, Tensor]:
    """Losses, gradients and state of three steps: of one process, or of one of two on its image of each batch.

    The detectors' normaliser is the mean over processes, and their gradients are averaged.
    """
    loss, _ = build(arm, dense_positives=dense_positives)
    found = {"values": [], "gradients": []}
    for seed in range(3):
        target = make_target(seed, dense_positives=dense_positives)
        if seed == 1:  # all objects are in the first image
            middle = target.num_locations * target.num_classes // 2
            target = replace(target, positive=torch.where(target.positive < middle, target.positive, -1))
        z, n = distinct_logits(seed, target).double(), normalizer_of(target)
        box = torch.tensor(BOX, dtype=torch.float64)
        if rank is not None:
            z, target, n = z.chunk(2)[rank], part_of(target, rank), n / 2
            box = box * (0.5, 1.5)[rank]
        z.requires_grad_()
        value, gradient = loss_and_gradient(loss(z, target, n, localization=box), z)
        found["values"].append(value)
        found["gradients"].append(gradient)
        loss.update()
    return {name: torch.stack(values) for name, values in found.items()} | loss.state_dict()


def work(rank: int, folder: str, configs: dict[str, DictConfig]) -> None:
    torch.set_num_threads(1)
    CONFIGS.update(configs)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = {
        (arm, dense_positives): train(arm, rank, dense_positives=dense_positives)
        for arm in ARMS
        for dense_positives in (True, False)
    }
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one_for_every_loss(tmp_path: Path):
    """Values, gradients and state are equal; each process of the two ranking losses equals a single process with its images."""
    mp.spawn(work, args=(str(tmp_path), {arm: configured(arm) for arm in ARMS}), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for (arm, dense_positives), first in ranks[0].items():
        second, message = ranks[1][arm, dense_positives], f"{arm}, dense_positives={dense_positives}"
        same = partial(torch.testing.assert_close, rtol=1e-6, atol=1e-12, msg=message)
        if arm in RANKED_APART:
            for rank, found in enumerate((first, second)):
                alone = train(arm, rank, dense_positives=dense_positives)
                same(found["values"], alone["values"])
                same(found["gradients"], alone["gradients"])
            continue
        alone = train(arm, None, dense_positives=dense_positives)
        same((first.pop("values") + second.pop("values")) / 2, alone.pop("values"))
        same(torch.cat([first.pop("gradients"), second.pop("gradients")], 1) / 2, alone.pop("gradients"))
        for name, value in alone.items():
            same(first[name], value)
            assert torch.equal(first[name], second[name]), f"{message}: {name}"
