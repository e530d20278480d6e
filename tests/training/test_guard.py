"""Deferred checks of values that must be finite, as on a GPU, compared with immediate checks: the same stop, the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from afl.training.guard import FiniteGuard, NonFiniteLoss, Suspects
from afl.training.optimizer import build_optimizer
from detectors.contract import Targets

TARGETS = Targets(
    boxes=torch.zeros(1, 1, 4),
    labels=torch.zeros(1, 1, dtype=torch.int64),
    ignored=torch.zeros(1, 1, dtype=torch.bool),
    image_sizes=torch.tensor([[8, 8]]),
)


def train(
    folder: Path, late: bool, optimizer, bad_step: int | None, steps: int = 12
) -> tuple[nn.Module, list]:
    """Train a linear model on fixed data whose loss is NaN from one step on; returns the weights after every step."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = build_optimizer(optimizer, model, 0.1)
    guard = FiniteGuard(model, optimizer, torch.device("cpu"), folder, late=late)
    history = []
    try:
        for step in range(steps):
            optimizer.zero_grad()
            loss = model(torch.full((3, 4), 1.0 + step)).square().mean()
            if step == bad_step:
                loss = loss * float("nan")
            suspects = Suspects(
                {"heat": loss.detach()}, step, torch.ones(1), torch.tensor([40 + step]), TARGETS
            )
            guard.check(loss, "loss", suspects)
            loss.backward()
            optimizer.step()
            history.append(model.weight.detach().clone())
        guard.settle()
    except NonFiniteLoss as stop:
        history.append(stop)
    return model, history


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda groups, **more: torch.optim.AdamW(groups, lr=0.1, **more),
        lambda groups, **more: torch.optim.SGD(groups, lr=0.01, momentum=0.9, **more),
    ],
)
@pytest.mark.parametrize("bad_step", [0, 5, 11])
def test_weights_do_not_change_after_a_bad_value_that_is_detected_later(tmp_path, optimizer, bad_step):
    now, at_once = train(tmp_path / "now", False, optimizer, bad_step)
    late, later = train(tmp_path / "late", True, optimizer, bad_step)
    assert len(later) >= len(at_once)
    torch.testing.assert_close(late.weight, now.weight, rtol=0, atol=0)
    assert str(later[-1]).replace("late", "now") == str(at_once[-1])
    assert f"loss is not finite at step {bad_step} (heat nan) on images [{40 + bad_step}]" in str(later[-1])
    saved = [
        torch.load(f, weights_only=True) for f in sorted(tmp_path.glob(f"*/non_finite_step{bad_step}.pt"))
    ]
    assert len(saved) == 2
    torch.testing.assert_close(saved[0]["model"], saved[1]["model"], rtol=0, atol=0)


def test_deferred_checks_do_not_change_a_finite_training(tmp_path):
    def adam(groups, **more):
        return torch.optim.AdamW(groups, lr=0.1, **more)

    now, history = train(tmp_path, False, adam, None)
    late, same = train(tmp_path, True, adam, None)
    torch.testing.assert_close(same, history, rtol=0, atol=0)
    assert not list(tmp_path.iterdir())


def test_values_are_checked_immediately_if_the_optimizer_cannot_skip_a_step(tmp_path):
    model = nn.Linear(2, 1)
    plain = build_optimizer(lambda groups: torch.optim.RMSprop(groups, lr=0.1), model, 0.0)
    guard = FiniteGuard(model, plain, torch.device("meta"), tmp_path)
    suspects = Suspects({"heat": torch.tensor(1.0)}, 3, torch.ones(1), torch.tensor([7]), TARGETS)
    with pytest.raises(NonFiniteLoss, match="gradient norm is not finite at step 3"):
        guard.check(torch.tensor(float("inf")), "gradient norm", suspects)


def stopped(folder: Path) -> str:
    """The message of a guard that saves to ``folder``."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = FiniteGuard(model, optimizer, torch.device("cpu"), folder)
    suspects = Suspects({"heat": torch.tensor(1.0)}, 3, torch.ones(1), torch.tensor([7]), TARGETS)
    with pytest.raises(NonFiniteLoss) as stop:
        guard.check(torch.tensor(float("nan")), "loss", suspects)
    return str(stop.value)


def test_a_full_disk_does_not_hide_the_error(tmp_path, monkeypatch):
    def no_space(*_):
        raise OSError(28, "No space left on device", str(tmp_path / "x.pt"))

    monkeypatch.setattr("afl.training.guard.write_bytes", no_space)
    said = stopped(tmp_path)
    assert "loss is not finite at step 3 (heat 1) on images [7]" in said and "replay" not in said
    assert "could not be saved: No space left on device. A lower learning rate" in said


def test_each_of_several_processes_saves_its_batch(tmp_path, monkeypatch):
    monkeypatch.setattr("afl.training.guard.dist.is_initialized", lambda: True)
    for rank in range(2):
        monkeypatch.setattr("afl.training.guard.dist.get_rank", lambda rank=rank: rank)
        assert f"non_finite_step3_process{rank}.pt" in stopped(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
