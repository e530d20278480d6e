"""The public functions on dense targets compared with their reference by autograd, and with the path of maps."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from afl.losses import (
    AdaptiveFocalLoss,
    AdaptiveGradient,
    ClassificationLoss,
    ClassWeights,
    adaptive_focal_loss,
    class_balanced_focal_loss,
    class_balanced_weights,
    dense,
    reference,
    sigmoid_focal_loss,
)
from tests.losses.cases import loss_and_gradient, make_info, random_logits, random_target

COUNTS = torch.tensor([1400.0, 567.0, 87.0, 12.0, 2.0])


def reduce(loss, reduction):
    return {"none": lambda: loss, "mean": loss.mean, "sum": loss.sum}[reduction]()


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    shape=st.sampled_from([(5,), (9, 5), (2, 3, 5), (40, 5)]),
    kind=st.sampled_from(["soft", "hard", "sparse"]),
    gamma=st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0]),
    alpha=st.sampled_from([-1.0, 0.25]),
    kappa=st.sampled_from([0.0, 0.3, 2.0]),
    per_class=st.booleans(),
    reduction=st.sampled_from(["none", "sum", "mean"]),
    block=st.sampled_from([1, 10, 1 << 15]),
)
def test_adaptive_focal_loss_equals_dense_reference(
    seed, shape, kind, gamma, alpha, kappa, per_class, reduction, block
):
    random = torch.Generator().manual_seed(seed)
    logits = (4 * torch.randn(shape, generator=random, dtype=torch.float64)).requires_grad_()
    targets = torch.rand(shape, generator=random, dtype=torch.float64)
    if kind != "soft":
        targets = (targets > (0.5 if kind == "hard" else 0.95)).double() * (
            targets if kind == "sparse" else 1
        )
    weights = 20 * torch.rand(5, generator=random, dtype=torch.float64)
    strength = kappa * torch.rand(5, generator=random, dtype=torch.float64) if per_class else kappa
    upstream = torch.randn(shape if reduction == "none" else (), generator=random, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense, "_BLOCK", block)
        actual = adaptive_focal_loss(logits, targets, weights, strength, 0.5, alpha, gamma, reduction)
    expected = reference.adaptive_focal_loss(logits, targets, weights, strength / 0.5, alpha, gamma)
    expected = reduce(expected, reduction)
    assert actual.shape == expected.shape
    torch.testing.assert_close(
        torch.autograd.grad(actual, logits, upstream), torch.autograd.grad(expected, logits, upstream)
    )
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_loss_of_no_elements_is_zero(reduction):
    logits = torch.zeros(0, 5, requires_grad=True)
    loss = adaptive_focal_loss(logits, torch.zeros(0, 5), torch.ones(5), reduction=reduction)
    loss.sum().backward()
    assert loss.sum() == 0 and logits.grad.shape == (0, 5)


def test_class_balanced_focal_loss_is_adaptive_focal_loss_with_open_gate():
    torch.manual_seed(0)
    logits, targets = torch.randn(9, 5), torch.rand(9, 5)
    weights = class_balanced_weights(COUNTS)
    torch.testing.assert_close(
        class_balanced_focal_loss(logits, targets, weights),
        adaptive_focal_loss(logits, targets, weights, kappa=0.0),
    )


def test_class_balanced_focal_loss_without_focus_equals_torch_cross_entropy_with_pos_weight():
    torch.manual_seed(1)
    logits, targets = torch.randn(9, 5), torch.rand(9, 5).round()
    weights = class_balanced_weights(COUNTS)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, targets, pos_weight=weights, reduction="none"
    )
    torch.testing.assert_close(
        class_balanced_focal_loss(logits, targets, weights, alpha=-1, gamma=0.0), expected
    )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_public_functions_pass_gradcheck(gamma, reduction):
    torch.manual_seed(2)
    logits = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.rand(4, 5, dtype=torch.float64)
    weights = class_balanced_weights(COUNTS).double()
    for function in (
        lambda z: sigmoid_focal_loss(z, targets, 0.25, gamma, reduction),
        lambda z: class_balanced_focal_loss(z, targets, weights, 0.25, gamma, reduction),
        lambda z: adaptive_focal_loss(z, targets, weights, 0.0, 1.0, 0.25, gamma, reduction),
    ):
        assert torch.autograd.gradcheck(function, logits)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_equal_double_precision_reference(gamma, dtype):
    z = torch.linspace(-85, 85, 500).view(-1, 5).to(dtype)
    y = torch.arange(500).view(-1, 5).remainder(2).to(dtype)
    weights = class_balanced_weights(COUNTS)
    low, double = z.clone().requires_grad_(), z.double().requires_grad_()
    loss, gradient = loss_and_gradient(
        adaptive_focal_loss(low, y, weights, gamma=gamma, reduction="sum"), low
    )
    expected = reference.adaptive_focal_loss(double, y.double(), weights.double(), 1.0, 0.25, gamma).sum()
    expected, slope = loss_and_gradient(expected, double)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    rounding = 5e-6 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(gradient.double(), slope, rtol=rounding, atol=1e-30)


def test_dense_path_equals_the_path_of_the_maps():
    target = random_target(3, scaled=0)
    logits = random_logits(3, target)
    y = torch.zeros(logits.numel(), dtype=torch.float64)
    y[target.positive[target.is_positive]] = 1
    chain = {"weights": lambda i: ClassWeights(i, cap=5.0), "gate": lambda i: AdaptiveGradient(i, kappa=0.7)}
    maps = ClassificationLoss(make_info(COUNTS.tolist()), chain=chain)
    weights = class_balanced_weights(COUNTS, cap=5.0)
    ours = adaptive_focal_loss(logits, y.view_as(logits), weights, kappa=0.7, reduction="sum")
    torch.testing.assert_close(
        loss_and_gradient(ours, logits),
        loss_and_gradient(maps(logits, target, torch.tensor(1.0)), logits),
        rtol=1e-6,
        atol=1e-12,
    )


@pytest.mark.parametrize("density", [0.0, 0.05, 0.5])
def test_permuted_logits_equal_their_contiguous_copy(density):
    torch.manual_seed(4)
    channels_first = torch.randn(2, 5, 9, dtype=torch.float64, requires_grad=True)
    targets = (torch.rand(2, 9, 5) < density).double()
    weights = class_balanced_weights(COUNTS)
    permuted = channels_first.transpose(1, 2)
    actual = loss_and_gradient(adaptive_focal_loss(permuted, targets, weights).sum(), channels_first)
    copied = permuted.detach().contiguous().requires_grad_()
    expected, slope = loss_and_gradient(adaptive_focal_loss(copied, targets, weights).sum(), copied)
    torch.testing.assert_close(actual, (expected, slope.transpose(1, 2)))


def test_saved_for_backward_is_one_tensor_of_the_logits_size():
    logits, targets = torch.randn(9, 5, requires_grad=True), torch.rand(9, 5)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        adaptive_focal_loss(logits, targets, class_balanced_weights(COUNTS), reduction="sum")
    assert saved == [logits.shape]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"targets": torch.zeros(4, 1)}, "Targets"),
        ({"class_weights": torch.ones(4)}, "Class weights"),
        ({"reduction": "average"}, "reduction"),
        ({"gamma": -1.0}, "gamma"),
        ({"alpha": 2.0}, "alpha"),
        ({"tau": 0.0}, "tau"),
        ({"kappa": -1.0}, "kappa"),
        *(({"kappa": torch.ones(shape)}, "kappa") for shape in ((1,), (4,), (4, 5), (1, 5))),
    ],
)
def test_bad_arguments_are_named(arguments, word):
    good = {"logits": torch.zeros(4, 5), "targets": torch.zeros(4, 5), "class_weights": torch.ones(5)}
    with pytest.raises(ValueError, match=word):
        adaptive_focal_loss(**(good | arguments))


def test_soft_targets_that_sum_to_less_than_one_count_in_full():
    module = AdaptiveFocalLoss(torch.tensor([5.0]), momentum=0.0)
    module(torch.zeros(2, 1), torch.tensor([[0.3], [0.0]]))
    assert module.maturity.ghat.item() == pytest.approx(0.5 - 0.3)


def test_kappa_of_the_module_decreases_as_positives_are_learned():
    shape = {"tau": 2.0, "alpha": 0.4, "gamma": 1.5, "reduction": "sum"}
    loss = AdaptiveFocalLoss(COUNTS, momentum=0.5, prior=0.1, cap=5.0, **shape)
    weights = class_balanced_weights(COUNTS, normalize="instances", cap=5.0)
    targets = torch.zeros(3, 5)
    targets[0, 4] = targets[1, 0] = 1
    ghat = 0.9
    for p in (0.2, 0.5, 0.8, 0.9, 0.95):
        logits = torch.full((3, 5), p).logit()
        kappa = min(1.0, max(0.0, (ghat - 0.5) / 0.4))
        assert loss.kappa.item() == pytest.approx(kappa, abs=1e-6)
        expected = adaptive_focal_loss(logits, targets, weights, kappa=kappa, **shape)
        torch.testing.assert_close(loss(logits, targets), expected)
        ghat = 0.5 * ghat + 0.5 * (1 - p)
    assert loss.kappa == 0


def test_the_module_has_constant_state_in_evaluation_or_without_positives():
    loss = AdaptiveFocalLoss(COUNTS, momentum=0.5)
    before = copy.deepcopy(loss.state_dict())
    loss(torch.zeros(3, 5), torch.zeros(3, 5))
    loss.eval()
    loss(torch.zeros(3, 5), torch.ones(3, 5))
    assert all(torch.equal(loss.state_dict()[name], value) for name, value in before.items())
