"""The fused GPU kernels (on a CPU in Triton's interpreter) compared with the dense reference in double precision."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from afl.losses import PADDING, ClassificationTarget, ElementWeights, VarifocalLoss, dense, reference
from afl.losses.fused import uses_triton
from afl.losses.primitive import gradient_mass, weighted_loss
from afl.losses.sampling import largest_negative_losses, location_losses
from tests.fresh_python import run_without_interpreter
from tests.losses.cases import (
    SEEDS,
    TARGETS,
    WEIGHTS,
    loss_and_gradient,
    make_info,
    plain_target,
    random_logits,
    random_target,
    random_weights,
)

kernels = pytest.importorskip("afl.losses.triton_kernel")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NORMALIZER = torch.tensor(7.0, dtype=torch.float64, device=DEVICE)
# The relative error of exp on a GPU is about 1e-7 times its argument.
LOSS_DIGITS, DIGITS = (1e-6, 5e-6) if DEVICE == "cpu" else (1e-5, 5e-5)
ROUNDING = {torch.float32: DIGITS, torch.bfloat16: 2**-8, torch.float16: 2**-10}
SMALLEST = {torch.float32: 1e-30, torch.bfloat16: 1e-30, torch.float16: 1e-7}


@pytest.fixture(autouse=True)
def _kernels_forced_on(monkeypatch):
    monkeypatch.setenv("AFL_TRITON", "on")


def on_device(thing):
    """Move all tensors of a target or of weights to the device of the test."""
    moved = {name: value.to(DEVICE) for name, value in vars(thing).items() if isinstance(value, torch.Tensor)}
    return replace(thing, **moved)


def assert_equals_reference(logits, target, weights, smallest=0.0):
    target, weights = on_device(target), on_device(weights)
    low = logits.detach().to(DEVICE).requires_grad_()
    double = low.detach().double().requires_grad_()
    expected, slope = loss_and_gradient(reference.weighted_loss(double, target, weights, NORMALIZER), double)
    assert uses_triton(low)
    loss, gradient = loss_and_gradient(weighted_loss(low, target, weights, NORMALIZER), low)
    assert loss.dtype == torch.float32 and gradient.dtype == low.dtype
    torch.testing.assert_close(loss.double(), expected, rtol=LOSS_DIGITS, atol=1e-12)
    torch.testing.assert_close(
        gradient.double(), slope, rtol=ROUNDING[low.dtype], atol=max(SMALLEST[low.dtype], smallest)
    )


@settings(max_examples=40, deadline=None)
@given(
    seed=SEEDS,
    options=st.fixed_dictionaries(
        TARGETS
        | {
            "locations": st.sampled_from([1, 13, 101]),
            "classes": st.sampled_from([1, 5, 37]),
            "positives": st.sampled_from([0, 1, 9]),
            "scaled": st.sampled_from([0, 20]),
            "shifted": st.booleans(),
        }
    ),
    weights=st.fixed_dictionaries(WEIGHTS),
)
def test_kernels_equal_dense_reference_on_random_targets(seed, options, weights):
    target = random_target(seed, **options)
    weights = random_weights(seed, target, **weights)
    # If a soft target is close to its probability, the gradient is a difference of almost equal numbers.
    assert_equals_reference(random_logits(seed, target).float(), target, weights, smallest=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_kernels_equal_double_precision_reference_up_to_80(dtype, gamma):
    target = random_target(7, locations=40, ignored=True, verified=True, soft=False)
    weights = random_weights(7, target, gamma=gamma, gate="scalar", negatives=True)
    z = torch.linspace(-80, 80, target.num_locations * target.num_classes).view(-1, target.num_classes)
    assert_equals_reference(z.to(dtype), target, weights)


@pytest.mark.parametrize("locations", [0, 1, 3, 31, 33, 4095, 4097])
def test_every_element_is_counted_once_for_any_size(locations):
    """All logits 0 and gamma 0: the loss is the number of elements times ln 2."""
    target = plain_target(locations, 3, [0] if locations else [])
    logits = torch.zeros(locations, 3, device=DEVICE, requires_grad=True)
    weights = replace(random_weights(0, target, gamma=0.0, alpha=-1.0), positive=None)
    one = torch.ones((), device=DEVICE)
    loss, gradient = loss_and_gradient(weighted_loss(logits, on_device(target), weights, one), logits)
    assert loss.item() == pytest.approx(3 * locations * 0.6931471805599453, rel=1e-6)
    assert gradient.abs().eq(0.5).all()


def test_programs_are_long_on_large_maps_and_many_on_small_ones(monkeypatch):
    monkeypatch.setattr(kernels, "interpreted", lambda: False)
    sizes = {1: 1, 20_000 * 80: 1, 20_000 * 1203: 2, 200_000 * 1203: 8, 2**33: 8}
    assert {elements: kernels._steps(elements) for elements in sizes} == sizes


@pytest.mark.parametrize("steps", [1, 2, 8])
@pytest.mark.parametrize("gate", ["scalar", "class"])
def test_several_programs_and_several_blocks_of_a_program_equal_one(monkeypatch, gate, steps):
    """Eight blocks of a program are more than the map; with fewer, the last program is masked."""
    target = random_target(3, locations=60, ignored=True, verified=True, scaled=90, positives=40)
    weights = random_weights(3, target, gate=gate, negatives=True)
    monkeypatch.setattr(kernels, "_steps", lambda elements: steps)
    if DEVICE == "cpu":
        monkeypatch.setattr(kernels, "block_size", lambda elements: 128)
    assert_equals_reference(random_logits(3, target).float(), target, weights)


def test_weights_may_be_zero_or_one_as_in_hard_sampling():
    target = random_target(5, scaled=0)
    weights = random_weights(5, target, negatives=True)
    weights = replace(weights, negative_element=weights.negative_element > 1.5)
    assert_equals_reference(random_logits(5, target).float(), target, weights)


def test_logits_may_be_strided_and_need_no_gradient():
    target = random_target(6)
    weights = random_weights(6, target)
    logits = random_logits(6, target).detach().float().t().contiguous().t()
    assert not logits.is_contiguous()
    assert_equals_reference(logits, target, weights)
    loss = weighted_loss(logits.to(DEVICE), on_device(target), on_device(weights), NORMALIZER)
    assert not loss.requires_grad and loss > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights_above", [(1.0, 1.0), (2.5, 2.5), (1.0, 0.5), (3.0, 1.0), (0.0, 2.5)])
def test_two_backward_passes_through_one_graph_may_have_different_weights(weights_above, dtype):
    target = on_device(random_target(8))
    weights = on_device(random_weights(8, target, gate="scalar"))
    logits = random_logits(8, target).detach().to(dtype).to(DEVICE).requires_grad_()
    _, once = loss_and_gradient(weighted_loss(logits, target, weights, NORMALIZER), logits)
    loss = weighted_loss(logits, target, weights, NORMALIZER)
    for above in weights_above:
        (gradient,) = torch.autograd.grad(above * loss, logits, retain_graph=True)
        # What a caller does with a gradient does not change the next one.
        torch.testing.assert_close(gradient.clone(), above * once, rtol=ROUNDING[dtype], atol=1e-6)
        gradient.zero_()
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, once, rtol=ROUNDING[dtype], atol=1e-6)


def test_the_gradient_is_the_only_saved_tensor_of_the_logits_size():
    target = on_device(random_target(9, classes=37))
    logits = random_logits(9, target).detach().float().to(DEVICE).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        weighted_loss(logits, target, on_device(random_weights(9, target, gate="scalar")), NORMALIZER)
    assert sum(tensor.numel() * tensor.element_size() for tensor in kept) <= 4 * logits.numel()


def test_masses_of_gradients_equal_those_of_the_blocked_pass(monkeypatch):
    target = on_device(random_target(10, ignored=True, verified=True, scaled=30))
    weights = on_device(random_weights(10, target, negatives=True, gate="scalar"))
    logits = random_logits(10, target).detach().float().to(DEVICE)
    actual = gradient_mass(logits, target, weights, by_class=False)
    monkeypatch.setenv("AFL_TRITON", "off")
    expected = gradient_mass(logits.double(), target, weights, by_class=False)
    torch.testing.assert_close(actual, expected, rtol=LOSS_DIGITS, atol=0)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (-1.0, 0.0), (0.5, 1.5)])
@pytest.mark.parametrize("strength", [None, "scalar", "class"])
def test_dense_targets_equal_the_reference(reduction, alpha, gamma, strength):
    random = torch.Generator().manual_seed(11)
    z = (3 * torch.randn(17, 23, generator=random, dtype=torch.float64)).to(DEVICE).requires_grad_()
    y = torch.rand(17, 23, generator=random, dtype=torch.float64)
    y = torch.where(y < 0.3, 0.0, torch.where(y > 0.8, 1.0, y)).to(DEVICE)
    class_weights = (1 + 4 * torch.rand(23, generator=random, dtype=torch.float64)).to(DEVICE)
    kappa = {None: None, "scalar": torch.tensor(0.7), "class": torch.rand(23, generator=random)}[strength]
    kappa = None if kappa is None else kappa.to(DEVICE)
    above = torch.rand(17, 23, generator=random, dtype=torch.float64).to(DEVICE)

    def outcome(loss, logits):
        loss = {"none": lambda: (loss * above.to(loss)).sum(), "mean": loss.mean, "sum": loss.sum}[
            reduction
        ]()
        return loss_and_gradient(loss, logits)

    full = reference.adaptive_focal_loss(
        z, y, class_weights, 0.0 if kappa is None else kappa.double(), alpha, gamma
    )
    expected = outcome(full, z)
    low = z.detach().float().requires_grad_()
    loss = dense.dense_loss(low, y.float(), class_weights.float(), kappa, alpha, gamma, reduction)
    if reduction == "none":
        loss = (loss * above.float()).sum()
    actual = loss_and_gradient(loss, low)
    torch.testing.assert_close(actual[0].double(), expected[0], rtol=5e-6, atol=1e-9)
    torch.testing.assert_close(actual[1].double(), expected[1], rtol=5e-5, atol=1e-6)


def test_a_loss_outside_the_family_also_uses_the_kernels(monkeypatch):
    target = on_device(replace(random_target(12, scaled=0), overlap=torch.rand(9)))
    logits = random_logits(12, target).detach().float().to(DEVICE).requires_grad_()
    loss = VarifocalLoss(make_info([5.0] * 5))
    actual = loss_and_gradient(loss(logits, target, NORMALIZER), logits)
    monkeypatch.setenv("AFL_TRITON", "off")
    expected = loss_and_gradient(loss(logits, target, NORMALIZER), logits)
    torch.testing.assert_close(actual, expected, rtol=DIGITS, atol=1e-7)


def test_the_switch_selects_the_kernels_and_float64_uses_torch(monkeypatch):
    low, double = torch.zeros(1, device=DEVICE), torch.zeros(1, device=DEVICE, dtype=torch.float64)
    assert uses_triton(low) and not uses_triton(double) and not uses_triton(low.to("meta"))
    monkeypatch.setenv("AFL_TRITON", "off")
    assert not uses_triton(low)
    monkeypatch.setenv("AFL_TRITON", "auto")
    assert uses_triton(low) == (DEVICE == "cuda")
    monkeypatch.setenv("AFL_TRITON", "perhaps")
    with pytest.raises(RuntimeError, match="AFL_TRITON=perhaps: it is auto, on or off"):
        uses_triton(low)


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU needs no interpreter")
def test_kernels_on_a_cpu_require_the_interpreter():
    code = "import torch; from afl.losses.fused import uses_triton; uses_triton(torch.zeros(1))"
    done = run_without_interpreter(code, AFL_TRITON="on")
    assert done.returncode and "needs TRITON_INTERPRET=1" in done.stderr


BUILD = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from afl.losses import triton_dense, triton_histogram, triton_kernel, triton_launch, triton_positives, triton_ranking, triton_rows

POINTERS = dict(
    logits="*bf16", gradient="*bf16", marked="*i32", normalizer="*fp32", partial="*fp32", gate="*fp32", ignored="*u8",
    verified="*u8", image="*i64", negative_class="*fp32", negative_location="*fp32", negative_element="*u8",
    gamma_of_class="*fp32", index="*i64", value="*fp32", weight="*fp32", slot="*i32", negative_slot="*fp32", negative_bin="*fp32",
    shift="*fp32", positive_shift="*fp32", scale="*fp32", upstream="*fp32", sums="*fp32", largest="*fp32",
    targets="*fp32", losses="*fp32", class_weights="*fp32", strength="*fp32", free="*u8",
    bends="*fp32", table="*i64", sane="*fp32", begin="*fp32", pull="*fp32", mean="*fp32",
)
NUMBERS = dict(gamma="fp32", balance="fp32", alpha="fp32", elements="i64", count="i32", locations="i32", inverse="fp32", copies="i32", bend_count="i32")
CHOSEN = dict(
    GATE_OF_CLASS=True, STRENGTH_OF_CLASS=True, ALPHA=True, MASS=False, C=1203, KIND=2, BLOCK=128, gamma_of_class=None,
    ROWS=4, WORDS=64, COLUMNS=32, STEPS=4, BINS=30, WIDTH=32, VECTOR=8,
)
for kernel, own in (
    (triton_kernel._mark_listed, {}),
    (triton_kernel._mark_ignored, {}),
    (triton_kernel._positives, {}),
    (triton_kernel._scaled_negatives, {}),
    (triton_kernel._plain_negatives, {"marked": "*u8"}),
    (triton_dense._elements, {"scale": "fp32"}),
    (triton_launch._scale, {}),
    (triton_rows._by_location, {}),
    (triton_rows._by_class, {}),
    (triton_positives._hardness, {}),
    (triton_histogram._histogram, {"partial": "*i32"}),
    (triton_ranking._tilted_sums, {}),
    (triton_ranking._tilted_gradient, {}),
    (triton_ranking._collect, {"scale": "*fp32"}),
    (triton_ranking._piecewise_linear, {"value": "*fp32", "slope": "*fp32"}),
):
    known = POINTERS | NUMBERS | own
    names = kernel.arg_names
    fixed = {name: CHOSEN[name] for name in names if name in CHOSEN}
    signature = {name: "constexpr" if name in fixed else known[name] for name in names}
    source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in fixed.items()})
    assert compile(source, target=GPUTarget("cuda", 80, 32)).asm["cubin"]
    print("built", kernel.__name__)
"""


def test_kernels_compile_for_a_gpu_without_one(tmp_path):
    done = run_without_interpreter(BUILD, TRITON_CACHE_DIR=str(tmp_path))
    assert done.stdout.count("built") == 15, done.stderr[-2000:]


def test_padding_without_positives_has_no_effect():
    target = ClassificationTarget(2, torch.zeros(4, dtype=torch.int64), 1, torch.full((5,), PADDING))
    weights = random_weights(0, target)
    assert_equals_reference(torch.randn(4, 2), target, weights)


@pytest.mark.parametrize("block", [64, 1024])
@pytest.mark.parametrize("classes", [1, 5, 32, 33, 100])
def test_whole_blocks_the_last_one_and_ignored_locations_of_any_width(monkeypatch, classes, block):
    """Full blocks are read without a mask; the bits of an ignored location can begin and end anywhere in a word."""
    monkeypatch.setattr("afl.losses.triton_launch._BLOCK_INTERPRETED", block)
    target = random_target(
        classes, locations=21, classes=classes, positives=min(6, 10 * classes), ignored=True, verified=True
    )
    weights = random_weights(classes, target, gate="scalar", negatives=True)
    assert_equals_reference(random_logits(classes, target).detach().float(), target, weights)
    full = random_target(classes, locations=32, classes=classes, scaled=0, ignored=True)
    assert_equals_reference(
        random_logits(1, full).detach().float(), full, random_weights(1, full, gate="class")
    )


def test_logarithm_and_sigmoid_of_an_element_are_accurate_everywhere():
    z = torch.linspace(-80, 80, 4000).view(-1, 4)
    target = plain_target(1000, 4, [])
    weights = ElementWeights(alpha=-1.0, gamma=0.0)
    double = z.double().to(DEVICE).requires_grad_()
    low = z.to(DEVICE).requires_grad_()
    expected = torch.nn.functional.softplus(double, threshold=100)
    loss = torch.stack(
        [
            weighted_loss(row.unsqueeze(0), plain_target(1, 4, []), weights, torch.ones(()))
            for row in low[::50]
        ]
    )
    torch.testing.assert_close(loss.double(), expected[::50].sum(1), rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(weighted_loss(low, target, weights, torch.ones(())), low)
    torch.testing.assert_close(gradient.double(), torch.sigmoid(double), rtol=DIGITS, atol=0)


@pytest.mark.parametrize("classes", [1, 5, 33, 300])
@pytest.mark.parametrize("gamma", [0.0, 2.0, "class"])
def test_losses_of_locations_equal_torch_s_pass(monkeypatch, classes, gamma):
    target = random_target(
        classes, locations=40, classes=classes, positives=9, ignored=True, verified=True, scaled=20
    )
    weights = on_device(random_weights(classes, target, gamma=gamma, negatives=True))
    if gamma == "class":
        weights = replace(weights, gamma=weights.gamma.float())
    logits = random_logits(classes, target).detach().float().to(DEVICE)
    target = on_device(target)
    found = location_losses(logits, target, weights), largest_negative_losses(logits, target, weights)
    monkeypatch.setenv("AFL_TRITON", "off")
    expected = location_losses(logits, target, weights), largest_negative_losses(logits, target, weights)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=DIGITS, atol=1e-6)


@pytest.mark.parametrize("classes", [1, 5, 33, 300])
@pytest.mark.parametrize("programs", [1, 3, 1024])
def test_masses_of_classes_equal_torch_s_pass(monkeypatch, classes, programs):
    monkeypatch.setattr("afl.losses.triton_rows._PROGRAMS", programs)
    monkeypatch.setattr("afl.losses.triton_launch._BLOCK_INTERPRETED", 1024)
    target = random_target(
        classes, locations=40, classes=classes, positives=9, ignored=True, verified=True, scaled=20
    )
    weights = on_device(random_weights(classes, target, negatives=True))
    logits = random_logits(classes, target).detach().float().to(DEVICE)
    target = on_device(target)
    found = gradient_mass(logits, target, weights)
    monkeypatch.setenv("AFL_TRITON", "off")
    for ours, theirs in zip(found, gradient_mass(logits, target, weights), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=DIGITS, atol=1e-6)
