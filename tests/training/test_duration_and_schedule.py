"""Durations compared with closed forms; schedules compared with torch's."""

import math

import pytest
import torch

from afl.training.duration import Duration
from afl.training.schedule import cosine_schedule, one_cycle_schedule, step_schedule, warmed_up


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("60steps", 60),
        ("3epochs", 76),
        ("1.5 epochs", 38),
        ("320images", 20),
        ("10percent", 50),
        ("0steps", 0),
        ("1image", 1),
        ("10steps+2epochs", 61),
    ],
)
def test_durations_in_steps(text, steps):
    assert Duration.parse(text).in_steps(images_per_epoch=406, batch_size=16, total_steps=500) == steps


@pytest.mark.parametrize("text", ["60", "steps", "3 fortnights", "", "-5steps", "None"])
def test_invalid_durations_give_an_error_with_the_units(text):
    with pytest.raises(ValueError, match="steps, epochs, images, percent"):
        Duration.parse(text)


def test_percent_needs_a_length():
    with pytest.raises(ValueError, match="percent is relative to the length"):
        Duration.parse("10percent").in_steps(images_per_epoch=10, batch_size=1)


def rates(scheduler_of, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = scheduler_of(optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_step_schedule_equals_torch_multistep():
    ours = step_schedule(total_steps=90, milestones=[60 / 90, 80 / 90])
    theirs = rates(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [60, 80]), 90)
    assert [ours(t) for t in range(90)] == pytest.approx(theirs)


def test_cosine_schedule_equals_torch_cosine_annealing():
    ours = cosine_schedule(total_steps=50, final=0.1)
    theirs = rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 50, eta_min=0.1), 50)
    assert [ours(t) for t in range(50)] == pytest.approx(theirs)


def test_one_cycle_schedule_equals_torch_except_for_the_last_step():
    steps, peak = 101, 25
    ours = one_cycle_schedule(total_steps=steps - 1)
    # torch's last phase ends on the last step, one step before this schedule's, and its rise starts one step earlier
    theirs = rates(
        lambda o: torch.optim.lr_scheduler.OneCycleLR(
            o,
            1.0,
            total_steps=steps,
            pct_start=(peak + 1) / steps,
            div_factor=25,
            final_div_factor=400,
            cycle_momentum=False,
        ),
        steps,
    )
    assert [ours(t) for t in range(steps)] == pytest.approx(theirs, abs=1e-9)


def test_warm_up_rises_linearly():
    schedule = warmed_up(lambda step: 2.0, warmup_steps=10, start=0.1)
    assert [schedule(t) for t in (0, 5, 10, 11)] == pytest.approx([0.2, 1.1, 2.0, 2.0])
    assert math.isclose(warmed_up(lambda step: 1.0, 0, 0.0)(0), 1.0)


def test_schedules_keep_their_last_value_after_the_end_and_a_rise_takes_at_least_one_step():
    assert [cosine_schedule(total_steps=10)(t) for t in (10, 14)] == pytest.approx([0.0, 0.0])
    assert [one_cycle_schedule(total_steps=10, final=0.01)(t) for t in (10, 14)] == pytest.approx(
        [0.01, 0.01]
    )
    # A quarter of two steps rounds to 0; the second step has the base learning rate.
    assert [one_cycle_schedule(total_steps=2, final=0.01)(t) for t in (0, 1, 2)] == pytest.approx(
        [0.04, 1.0, 0.01]
    )
