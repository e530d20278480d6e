"""Recorded gradients compared with autograd on slow losses, and in the files of whole runs."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from afl.losses import (
    PADDING,
    AdaptiveGradient,
    ClassificationLoss,
    ClassificationTarget,
    ClassWeights,
    MapLoss,
)
from afl.losses.reference import dense_target, quality_focal_loss, weighted_loss
from afl.losses.weighting import ElementWeights
from afl.tracking import mass_curves, read_metrics, read_record, summarize
from afl.training import gradient_dynamics, run_cell
from afl.training.gradient_dynamics import GradientDynamics, element_figures
from tests.losses.cases import make_info, plain_target, random_logits, random_target
from tests.losses.passes import Passes

COUNTS = [1400.0, 567.0, 87.0, 12.0, 3.0]
GROUPS = ["f", "f", "c", "r", "r"]
N = torch.tensor(7.0, dtype=torch.float64)
ARMS = {
    "fl": {},
    "afl": {"weights": ClassWeights, "gate": AdaptiveGradient},
    "afl_per_class": {"weights": ClassWeights, "gate": lambda info: AdaptiveGradient(info, per_class=True)},
}


def observed(
    loss: nn.Module, logits: Tensor, target: ClassificationTarget, groups=GROUPS
) -> dict[str, float]:
    with (dynamics := GradientDynamics({"map": loss}, groups)):
        value = loss(logits, target, N)
    # The weight of the loss in the total and other uses of the logits must not affect the figures.
    torch.autograd.grad(0.7 * value + logits.square().sum(), logits)
    return dynamics.figures()


def build(arm: str) -> ClassificationLoss:
    loss = ClassificationLoss(make_info(COUNTS), chain=ARMS[arm])
    if arm == "afl_per_class":
        loss.chain["gate"].maturity.ghat.copy_(torch.tensor([0.55, 0.6, 0.7, 0.9, 0.99]))
    return loss


def by_hand(loss: ClassificationLoss, logits: Tensor, target: ClassificationTarget) -> dict[str, list]:
    """|dL/dz| before the normaliser, gate and weight of every element by SIGN/GROUP, one element at a time."""
    weights = ElementWeights(alpha=loss.alpha, gamma=loss.gamma)
    if "weights" in loss.chain:
        own = loss.chain["weights"].weight.double()[target.positive.clamp(min=0) % 5]
        weights = ElementWeights(
            alpha=loss.alpha,
            gamma=loss.gamma,
            positive=own if target.value is None else 1 + (own - 1) * target.value,
            gate=loss.chain["gate"].kappa.double(),
        )
    (gradient,) = torch.autograd.grad(weighted_loss(logits, target, weights, N), logits)
    y, weight = dense_target(target, weights, logits)
    (free,) = torch.autograd.grad((weight * quality_focal_loss(logits, y, 2.0)).sum(), logits)
    hits = set(target.positive.tolist()) - {PADDING}
    found: dict[str, list] = {}
    for row in range(logits.shape[0]):
        for label in range(logits.shape[1]):
            positive = row * 5 + label in hits
            unchecked = target.verified is not None and not target.verified[target.image[row], label]
            if not positive and (unchecked or (target.ignored is not None and target.ignored[row])):
                continue
            strength = torch.zeros(5) if weights.gate is None else weights.gate.expand(5)
            found.setdefault(f"{'positive' if positive else 'negative'}/{GROUPS[label]}", []).append(
                (
                    float(gradient[row, label].abs() * N),
                    float(1 / (1 + strength[label] * free[row, label].abs())),
                    float(weight[row, label]),
                )
            )
    return found


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("fields", [{}, {"soft": True}, {"ignored": True, "verified": True}])
def test_figures_equal_autograd_on_the_slow_loss(arm, fields):
    target = random_target(5, positives=25, **fields)
    logits, loss = random_logits(5, target), build(arm)
    expected = by_hand(loss, logits, target)
    figures = observed(loss, logits, target)
    assert {
        name.split("/")[2] + "/" + name.split("/")[3] for name in figures if name.endswith("/sum")
    } == set(expected)
    for key, elements in expected.items():
        sizes, gates, weights = (
            torch.tensor(column, dtype=torch.float64) for column in zip(*elements, strict=True)
        )
        own = {name.rpartition("/")[2]: value for name, value in figures.items() if f"/{key}/" in name}
        assert own["count"] == len(elements)
        assert own["sum"] == pytest.approx(sizes.sum().item(), rel=1e-6)
        for q in (0.1, 0.5, 0.9):
            assert own[f"q{q:.0%}"[:-1]] == pytest.approx(sizes.quantile(q).item(), rel=1e-6)
            if arm != "fl":
                assert own[f"gate_q{q:.0%}"[:-1]] == pytest.approx(gates.quantile(q).item(), rel=1e-5)
        if arm != "fl" and key.startswith("positive"):
            assert own["weight"] == pytest.approx(weights.mean().item(), rel=1e-6)
    assert ("gradient/map/positive/f/gate_q50" in figures) == (arm != "fl")


class Hinge(MapLoss):
    """A loss outside all families: the mean excess over a margin, whose gradient is 0 or 1."""

    def compute(self, logits, target, normalizer, localization):
        return logits.clamp(min=1.0).sum() / normalizer


def test_any_loss_is_measured_without_changing_its_gradient():
    target = random_target(6, positives=4)
    logits = random_logits(6, target)
    figures = observed(Hinge(make_info(COUNTS)), logits, target)
    negative = torch.ones(logits.numel(), dtype=torch.bool)
    negative[target.positive[target.is_positive]] = False
    expected = ((logits.view(-1) > 1) & negative).view(-1, 5).sum(0)
    for group in "rcf":
        members = [own == group for own in GROUPS]
        assert figures[f"gradient/map/negative/{group}/sum"] == pytest.approx(expected[members].sum().item())
    assert not any("gate" in name or "weight" in name for name in figures)
    # Outside the context nothing is measured, and the measurement leaves no state on the logits.
    loss = Hinge(make_info(COUNTS))
    dynamics = GradientDynamics({"map": Hinge(make_info(COUNTS))}, GROUPS)
    loss(logits, target, N).backward()
    assert dynamics.figures() == {} and logits.grad.sum() == pytest.approx((logits > 1).sum() / N.item())


def test_a_map_without_classes_has_one_group_and_empty_groups_have_no_quantiles():
    target = plain_target(6, 1, [2])
    figures = observed(ClassificationLoss(make_info([10.0])), random_logits(1, target), target)
    assert {name.split("/")[3] for name in figures} == {"all"}
    target = plain_target(6, 5, [0])
    figures = observed(build("afl"), random_logits(2, target), target)
    assert figures["gradient/map/positive/r/count"] == figures["gradient/map/positive/r/sum"] == 0
    assert "gradient/map/positive/r/q50" not in figures and "gradient/map/positive/f/q50" in figures


def test_an_accelerator_reads_the_gradient_in_blocks_with_the_same_figures(monkeypatch):
    """The accelerator's path on a CPU: it reads no value and creates no tensor of the map's size."""
    target = random_target(5, positives=25, locations=400, ignored=True, verified=True)
    logits, loss = random_logits(5, target), build("afl_per_class")
    expected = observed(loss, logits, target)
    monkeypatch.setattr(gradient_dynamics, "BLOCK", 300)
    monkeypatch.setattr(gradient_dynamics.Eraser, "on_host", False)
    monkeypatch.setattr(gradient_dynamics, "on_host", lambda tensor: False)
    figures = observed(loss, logits, target)
    assert figures.keys() == expected.keys()
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value, rel=1e-6), name


def test_a_logged_step_waits_once_and_creates_no_tensor_of_the_maps_size(monkeypatch):
    """On a device without values, reading a value is an error; the figures are read in one transfer."""
    monkeypatch.setattr(gradient_dynamics, "BLOCK", 2000)
    monkeypatch.setattr(gradient_dynamics, "SAMPLE", 500)
    target = random_target(5, locations=4000, ignored=True, verified=True)
    fields = {name: x.to("meta") for name, x in vars(target).items() if isinstance(x, Tensor)}
    gradient = torch.empty(8000, 5, dtype=torch.bfloat16, device="meta")
    members = {group: torch.empty(5, dtype=torch.bool, device="meta") for group in "rcf"}
    weights = ElementWeights(alpha=0.25, gamma=2.0, gate=torch.empty((), device="meta"))
    with Passes(gradient.numel()) as passes:
        scale = torch.empty((), device="meta")
        figures = element_figures(gradient, scale, replace(target, **fields), members, (None, weights))
    assert len(figures) == 2 * 3 * 8 and all(value.device.type == "meta" for value in figures.values())
    assert not passes.found and not passes.allocated


def test_statistics_of_a_link_by_class_are_averaged_by_group():
    target = random_target(7)
    figures = observed(build("afl_per_class"), random_logits(7, target), target)
    assert figures["gradient/map/gate/ghat"] == pytest.approx((0.55 + 0.6 + 0.7 + 0.9 + 0.99) / 5)
    assert figures["gradient/map/gate/ghat/r"] == pytest.approx((0.9 + 0.99) / 2)


def test_sampled_quantiles_have_about_the_right_rank_and_do_not_change_random_numbers(monkeypatch):
    target = random_target(8, locations=2000, positives=40)
    logits, loss = random_logits(8, target), build("fl")
    sizes = {key: torch.tensor(elements)[:, 0] for key, elements in by_hand(loss, logits, target).items()}
    exact = observed(loss, logits, target)
    monkeypatch.setattr(gradient_dynamics, "SAMPLE", 4000)
    state = torch.get_rng_state()
    sampled = observed(loss, logits, target)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in exact.items():
        sign, group, figure = name.split("/")[2:]
        if sign == "negative" and figure in ("q10", "q50", "q90"):
            rank = (sizes[f"{sign}/{group}"] < sampled[name]).double().mean().item()
            assert sampled[name] != value and rank == pytest.approx(int(figure[1:]) / 100, abs=0.05)
        else:
            assert sampled[name] == value


def test_summary_of_a_run_equals_a_manual_computation():
    lines = [{"step": 0, "val/AP": 0.1}]
    for step in range(1, 26):
        sums = {"gradient/a/positive/r/sum": float(step), "gradient/a/negative/r/sum": 3.0 * step}
        gate = {"gradient/a/positive/r/gate_q50": 0.5} if step > 3 else {}
        lines.append({"step": step, "gradient_norm": 2.0, "gradient/b/positive/all/sum": 1.0, **sums, **gate})
    summary = summarize(lines)
    assert summary["steps"] == [3, 6, 9, 12, 15, 17, 19, 21, 23, 25]
    assert summary["share"] == {"b": {"positive/all": 1.0}, "a": {"positive/r": 0.25, "negative/r": 0.75}}
    assert summary["curves"]["gradient_norm"] == [2.0] * 10
    assert summary["curves"]["gradient/a/positive/r/gate_q50"] == [None] + [0.5] * 9
    assert summary["curves"]["gradient/a/positive/r/sum"] == [2, 5, 8, 11, 14, 16.5, 18.5, 20.5, 22.5, 24.5]
    assert mass_curves(summary)["negative/r"][0] == 6 and mass_curves(summary)["positive/all"] == [1.0] * 10
    assert summarize([{"step": 3, "val/AP": 0.5}]) == summarize([]) == {}
    assert summarize(lines[:3])["steps"] == [1, 2]


def test_a_run_logs_its_gradients_and_its_record_has_a_summary(small_cell):
    config = small_cell(
        "centernet", "afl", "trainer.log_every=2steps", "trainer.accumulate=2", "trainer.max_duration=5steps"
    )
    record = run_cell(config)
    folder = f"{config.paths.output}/{record.key}"
    lines = [line for line in read_metrics(f"{folder}/metrics.jsonl") if "gradient_norm" in line]
    assert [line["step"] for line in lines] == [2, 4, 5]
    for line in lines:
        groups = set(record.groups.values())
        for group in groups:
            assert line[f"gradient/heat/negative/{group}/sum"] > 0
            assert 0 < line[f"gradient/heat/negative/{group}/gate_q10"] <= 1
        assert sum(line[f"gradient/heat/positive/{group}/count"] for group in groups) > 0
        assert line["gradient/heat/adaptive_gradient/ghat"] > 0.5
    again = read_record(f"{folder}/record.json").gradient_dynamics
    assert again == record.gradient_dynamics == summarize(lines)
    assert math.isclose(sum(again["share"]["heat"].values()), 1, abs_tol=1e-3)
    json.dumps(again, allow_nan=False)


@pytest.mark.parametrize("loss", ["afl_balanced", "afl_per_class"])
def test_logging_does_not_change_the_trained_weights(small_cell, loss):
    saved = []
    for every in ("1steps", "100steps"):
        config = small_cell("retinanet", loss, f"trainer.log_every={every}", "trainer.max_duration=4steps")
        record = run_cell(config)
        saved.append(
            torch.load(f"{config.paths.output}/{record.key}/checkpoints/last.pt", weights_only=True)["model"]
        )
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])
