"""Every file of conf/loss on the path of a GPU: compared with its second computation, and counts of passes over the whole map."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

import pytest
import torch

from afl.losses import ElementWeights, at_objects, fused, negatives, sampling
from tests.losses.cases import loss_and_gradient, random_target
from tests.losses.passes import Passes
from tests.losses.test_every_method import ARMS, BOX, build, distinct_logits, make_target, normalizer_of

pytest.importorskip("triton")
KERNELS = [
    import_module(f"afl.losses.triton_{name}")
    for name in ("dense", "histogram", "kernel", "launch", "positives", "ranking", "rows")
]
PUBLISHED = [arm for arm in ARMS if not arm.startswith("ablation/")]
# Losses with a pass over the logits before or instead of the fused one.
WITH_PASSES = (
    "ap_loss",
    "dr_loss",
    "ghm",
    "ohem",
    "ssd",
    "libra",
    "efl",
    "afl",
    "afl_balanced",
    "afl_relative",
    "sampling_free",
    "ldam_drw",
)
# Losses that draw elements or keep the hardest ones.
DRAWN = ("libra", "federated", "federated_rfs", "federated_rfs_efl", "ohem", "ssd")
HEADS = pytest.mark.parametrize("dense_positives", [True, False], ids=["anchors", "heat_map"])


class Skipped:
    """A kernel that does nothing."""

    def __getitem__(self, grid):
        return lambda *args, **kwargs: None


@pytest.fixture
def kernels_skipped(monkeypatch):
    """The path of a GPU without its kernels: the host reads no value, and outputs of kernels are arbitrary."""
    kernel = type(import_module("afl.losses.triton_launch")._scale)
    for module in KERNELS:
        for name, value in list(vars(module).items()):
            if isinstance(value, kernel):
                monkeypatch.setattr(module, name, Skipped())
        for name, stand_in in (("interpreted", lambda: False), ("stored_type", lambda dtype: dtype)):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, stand_in)
    # A block of torch's passes, if there is one, contains the whole map.
    for module in (fused, at_objects, negatives):
        monkeypatch.setattr(module, "block_rows", lambda columns, device, elements: 1 << 20)
    monkeypatch.setattr(negatives.Eraser, "on_host", False)
    monkeypatch.setattr(sampling, "on_host", lambda tensor: False)
    for module in ("ap_loss", "ghm", "maturity", "primitive", "ranking", "sampling"):
        module = import_module(f"afl.losses.{module}")
        for name, stand_in in (("uses_triton", lambda tensor: True), ("on_host", lambda tensor: False)):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, stand_in)
    monkeypatch.setattr(fused, "uses_triton", lambda tensor: True)


@HEADS
@pytest.mark.parametrize("arm", PUBLISHED)
def test_no_torch_operation_passes_over_the_whole_map(kernels_skipped, arm, dense_positives):
    """The kernels write the gradient, the one tensor of the map's size."""
    loss, _ = build(arm, dense_positives=dense_positives)
    # Much larger than B times the samples that mining keeps in an image, and than P x C.
    target = make_target(0, dense_positives=dense_positives, images=2, locations=4000)
    logits = torch.zeros(8000, 5, dtype=torch.bfloat16, requires_grad=True)
    with Passes(logits.numel()) as passes:
        value = loss(logits, target, normalizer_of(target), localization=torch.tensor(BOX))
        value.backward()
    assert not passes.found, passes.found
    assert passes.allocated == 1


def test_the_gate_costs_few_operations_of_its_own(kernels_skipped):
    """They take as long as the loss itself on a small map, and longer to start than to run."""
    number = {}
    for arm in ("cbfl", "afl"):
        loss, _ = build(arm)
        target = make_target(0, dense_positives=True)
        logits = torch.zeros(60, 5, dtype=torch.bfloat16, requires_grad=True)
        with Passes(0) as passes:
            loss(logits, target, torch.ones(())).backward()
        number[arm] = passes.found.total()
    # kappa from ghat takes five, and the sum over positives is added to the running one.
    assert number["afl"] - number["cbfl"] <= 7


def test_operations_on_a_few_elements_are_not_counted_as_passes():
    x = torch.zeros(100)
    with Passes(100) as passes:
        x.view(10, 10)[torch.tensor([1])] += 1
        torch.empty_like(x).index_add_(0, torch.tensor([1]), torch.ones(1))
        assert not passes.found and passes.allocated == 1
        x.sum()
        x[:50] * 2
        x.mul_(2)
        assert passes.found == {"sum": 1, "mul_": 1}


@HEADS
@pytest.mark.parametrize("arm", WITH_PASSES)
def test_three_steps_equal_the_second_computation_up_to_80(monkeypatch, arm, dense_positives):
    monkeypatch.setenv("AFL_TRITON", "on")
    monkeypatch.setattr("afl.losses.triton_launch._BLOCK_INTERPRETED", 128)
    loss, info = build(arm, dense_positives=dense_positives)
    step = ARMS[arm](info)
    for seed, positives in enumerate((12, 12, 0)):
        target = make_target(seed, dense_positives=dense_positives, positives=positives)
        z, n = distinct_logits(seed, target), normalizer_of(target)
        box = torch.tensor(BOX if positives else 0.0, dtype=torch.float64)
        expected, slope = step(z.double().requires_grad_(), target, n.item(), box.item())
        low = z.bfloat16().requires_grad_()
        value, gradient = loss_and_gradient(loss(low, target, n, localization=box), low)
        loss.update()
        torch.testing.assert_close(value.double(), expected, rtol=2e-5, atol=1e-9)
        torch.testing.assert_close(gradient.double(), slope, rtol=1.5 * 2**-7, atol=1e-9)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("arm", ["ap_loss", "dr_loss", "ghm"])
def test_several_programs_equal_double_precision_on_larger_maps(monkeypatch, arm, soft):
    """Unverified classes, ignored locations and scaled negatives at once; the last program is not full."""
    monkeypatch.setattr("afl.losses.triton_launch._BLOCK_INTERPRETED", 512)
    options = {
        "images": 3,
        "locations": 400,
        "positives": 70,
        "scaled": 90,
        "ignored": True,
        "verified": True,
    }
    target = random_target(5, soft=soft, **options)
    z = 3 * torch.randn(1200, 5, generator=torch.Generator().manual_seed(5))
    found = {}
    for switch, kind in (("off", torch.float64), ("on", torch.float32)):
        monkeypatch.setenv("AFL_TRITON", switch)
        loss, _ = build(arm)
        low = z.to(kind).requires_grad_()
        found[switch] = [
            each.double() for each in loss_and_gradient(loss(low, target, torch.tensor(50.0)), low)
        ]
    torch.testing.assert_close(found["on"][0], found["off"][0], rtol=1e-6, atol=0)
    torch.testing.assert_close(found["on"][1], found["off"][1], rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("switch", ["on", "off"])
@pytest.mark.parametrize("arm", PUBLISHED)
def test_a_nan_logit_gives_a_nan_loss(monkeypatch, arm, switch):
    monkeypatch.setenv("AFL_TRITON", switch)
    monkeypatch.setattr("afl.losses.triton_launch._BLOCK_INTERPRETED", 512)
    loss, _ = build(arm)
    if arm in DRAWN:
        pytest.skip("the loss may leave this element out")
    target = random_target(0, positives=4, scaled=0)
    target = replace(target, overlap=torch.full((7,), 0.5), object=torch.zeros(7, dtype=torch.int64))
    negative = next(i for i in range(300) if i // 5 not in (target.positive // 5).tolist())
    z = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    z.view(-1)[negative] = torch.nan
    assert not loss(z.bfloat16(), target, torch.tensor(4.0), localization=torch.tensor(BOX)).isfinite()


@pytest.mark.parametrize("switch", ["on", "off"])
@pytest.mark.parametrize("arm", PUBLISHED)
def test_a_logit_that_takes_no_part_may_be_anything(monkeypatch, arm, switch):
    monkeypatch.setenv("AFL_TRITON", switch)
    target = make_target(3, dense_positives=False)
    target = replace(target, ignored=torch.arange(target.num_locations) % 5 == 2)
    part = target.verified[target.image] & ~target.ignored[:, None]
    part.view(-1)[target.positive[target.is_positive]] = True
    z = torch.randn(target.num_locations, 5, generator=torch.Generator().manual_seed(1))
    found = []
    for filler in (0.0, torch.nan, torch.inf):
        loss, _ = build(arm, dense_positives=False)
        own = torch.where(part, z, filler).requires_grad_()
        torch.manual_seed(0)
        value = loss(own, target, torch.tensor(4.0), localization=torch.tensor(BOX))
        found.append(loss_and_gradient(value, own))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("switch", ["on", "off"])
def test_a_positive_that_is_certain_costs_nothing(monkeypatch, switch):
    monkeypatch.setenv("AFL_TRITON", switch)
    target = make_target(3, dense_positives=True)
    z = torch.randn(target.num_locations, 5, generator=torch.Generator().manual_seed(1))
    first = target.positive[target.is_positive][0]
    found = []
    for certain in (200.0, torch.inf):
        loss, _ = build("afl")
        own = z.clone()
        own.view(-1)[first] = certain
        own.requires_grad_()
        found.append(loss_and_gradient(loss(own, target, torch.tensor(4.0)), own))
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("switch", ["on", "off"])
@pytest.mark.parametrize("arm", ["ohem", "ssd"])
def test_mining_a_heat_map_without_a_usable_location_gives_zero(monkeypatch, arm, switch):
    """A crowd region covers the whole image, and the only neighbourhoods are inside it."""
    monkeypatch.setenv("AFL_TRITON", switch)
    loss, _ = build(arm, dense_positives=False)
    target = make_target(0, dense_positives=False, positives=0)
    target = replace(target, ignored=torch.ones(target.num_locations, dtype=torch.bool))
    z = distinct_logits(0, target).requires_grad_()
    value, gradient = loss_and_gradient(loss(z, target, torch.tensor(1.0)), z)
    assert value == 0 and not gradient.any()


def test_weights_at_locations_multiply_those_of_other_locations():
    """With two tables, as for competing classes and mining, every element has the product of both weights."""
    random = torch.Generator().manual_seed(0)
    slots, tables = [], []
    for rows in ([0, 3, 4, 7], [1, 3, 7, 5, 2]):
        slot = torch.full((9,), -1, dtype=torch.int32)
        slot[torch.tensor(rows)] = torch.arange(len(rows), dtype=torch.int32)
        slots.append(slot)
        tables.append(torch.rand(len(rows), 4, generator=random))
    weights = ElementWeights(alpha=-1.0, gamma=0.0)
    for slot, table in zip(slots, tables, strict=True):
        weights = weights.times_at(slot, table)

    def dense(slot, table):
        return torch.where((slot >= 0).unsqueeze(1), table[slot.long()], 1.0)

    product = dense(slots[0], tables[0]) * dense(slots[1], tables[1])
    assert torch.equal(dense(weights.slot, weights.negative_slot), product)
