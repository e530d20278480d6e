"""The warmed-up loss is the loss times a factor that rises linearly."""

from functools import partial

import pytest
import torch

from afl.losses import (
    AdaptiveGradient,
    AnchoredGradient,
    ClassificationLoss,
    LossWarmUp,
    RelativeCap,
    SamplingFree,
)
from tests.losses.cases import make_info, random_logits, random_target


def test_loss_is_the_focal_loss_times_a_linear_ramp():
    info = make_info([9.0] * 5)
    plain = ClassificationLoss(info)
    warmed = ClassificationLoss(info, chain={"warm": lambda i: LossWarmUp(i, steps=4, start=0.2)})
    target, one = random_target(0), torch.tensor(3.0, dtype=torch.float64)
    logits = random_logits(1, target)
    for step in range(6):
        factor = min(1.0, 0.2 + 0.8 * step / 4)
        torch.testing.assert_close(warmed(logits, target, one), factor * plain(logits, target, one))
        warmed.update()


def test_the_ramp_survives_a_checkpoint():
    link = LossWarmUp(make_info([9.0] * 3), steps=10)
    for _ in range(4):
        link.update()
    other = LossWarmUp(make_info([9.0] * 3), steps=10)
    other.load_state_dict(link.state_dict())
    assert other.factor.item() == pytest.approx(0.1 + 0.9 * 0.4)


def test_a_gate_or_a_scaled_loss_that_would_undo_the_ramp_is_rejected():
    info, ramp = make_info([9.0] * 3), partial(LossWarmUp, steps=4)
    with pytest.raises(
        ValueError, match="the link warm of the chain fades the loss in, and the gate of gate"
    ):
        ClassificationLoss(info, chain={"gate": AdaptiveGradient, "warm": ramp})
    with pytest.raises(
        ValueError, match="the link warm of the chain fades the loss in, but sampling_free scales"
    ):
        SamplingFree(info, chain={"warm": ramp})


@pytest.mark.parametrize("link", [AnchoredGradient, RelativeCap, partial(AdaptiveGradient, negatives=False)])
def test_a_link_that_reads_the_faded_weights_of_positives_is_refused_after_the_ramp_only(link):
    info, ramp = make_info([9.0] * 3), partial(LossWarmUp, steps=4)
    with pytest.raises(ValueError, match="put warm last"):
        ClassificationLoss(info, chain={"warm": ramp, "other": link})
    info, target, one = make_info([9.0] * 5), random_target(0), torch.ones((), dtype=torch.float64)
    logits = random_logits(1, target)
    faded = ClassificationLoss(info, chain={"other": link, "warm": ramp})(logits, target, one)
    plain = ClassificationLoss(info, chain={"other": link})(logits, target, one)
    torch.testing.assert_close(faded, 0.1 * plain, rtol=1e-5, atol=0)
