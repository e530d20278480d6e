"""The running state of the links and of the module AdaptiveFocalLoss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from afl.losses import AdaptiveFocalLoss, AdaptiveGradient, ClassificationLoss, ClassWeights, GradientBalance
from tests.losses.cases import make_info, plain_target, random_logits, random_target

COUNTS = [1400.0, 567.0, 87.0, 12.0, 2.0]


def build(per_class=False):
    return ClassificationLoss(
        make_info(COUNTS),
        chain={
            "weights": lambda info: ClassWeights(info, fade_steps=10),
            "balance": lambda info: GradientBalance(info, decay=0.9, per_class=per_class),
            "gradient": lambda info: AdaptiveGradient(info, momentum=0.8, per_class=per_class),
        },
    )


def test_ghat_is_the_running_mean_over_micro_batches_of_one_step():
    loss = ClassificationLoss(
        make_info([1.0], prior=0.1), chain={"gate": lambda info: AdaptiveGradient(info, momentum=0.75)}
    )
    probabilities = [0.3, 0.8, 0.6]
    for p in probabilities:
        z = torch.tensor([[p], [0.5]]).logit()
        loss(z, plain_target(2, 1, [0, -1]), torch.tensor(1.0))
    loss.update()
    gate = loss.chain["gate"]
    expected = 0.75 * 0.9 + 0.25 * sum(1 - p for p in probabilities) / 3
    assert gate.maturity.ghat.item() == pytest.approx(expected)
    assert gate.kappa.item() == pytest.approx((expected - 0.5) / 0.4)


def test_ghat_of_soft_positives_is_mean_distance_to_their_value():
    loss = ClassificationLoss(
        make_info([1.0]), chain={"gate": lambda info: AdaptiveGradient(info, momentum=0.0)}
    )
    z = torch.tensor([[0.2], [0.9]]).logit()
    loss(z, plain_target(2, 1, [0, 1], value=torch.tensor([0.7, 0.6])), torch.tensor(1.0))
    loss.update()
    assert loss.chain["gate"].maturity.ghat.item() == pytest.approx((0.5 + 0.3) / 2)


def test_ghat_per_class_only_updates_present_classes_and_gates_each_class_separately():
    link = AdaptiveGradient(make_info([5.0, 5.0, 5.0]), momentum=0.5, per_class=True)
    loss = ClassificationLoss(make_info([5.0, 5.0, 5.0]), chain={"gate": lambda info: link})
    z = torch.tensor([[0.9, 0.2, 0.3], [0.7, 0.4, 0.5]]).logit()
    loss(z, plain_target(2, 3, [0, 3, 4]), torch.tensor(1.0))
    loss.update()
    ghat = [0.5 * 0.99 + 0.5 * 0.2, 0.5 * 0.99 + 0.5 * 0.6, 0.99]
    assert link.maturity.ghat.tolist() == pytest.approx(ghat)
    assert link.kappa.tolist() == pytest.approx([max(0.0, (g - 0.5) / 0.49) for g in ghat])


def test_balance_follows_decayed_sums_that_include_the_current_batch():
    loss = ClassificationLoss(
        make_info([1.0], alpha=-1),
        gamma=0.0,
        chain={"balance": lambda info: GradientBalance(info, decay=0.5)},
    )
    link = loss.chain["balance"]

    def negatives_weight(p_positive, p_negatives):
        z = torch.tensor([[p_positive], *[[p] for p in p_negatives]]).logit().requires_grad_()
        loss(z, plain_target(len(z), 1, [0]), torch.tensor(1.0)).backward()
        loss.update()
        return z.grad[1].item() / p_negatives[0]

    assert negatives_weight(0.4, [0.9, 0.9, 0.6]) == pytest.approx(0.6 / 2.4)
    assert negatives_weight(0.8, [0.5, 0.3, 0.2]) == pytest.approx((0.3 + 0.2) / (1.2 + 1.0))
    assert link.running.squeeze(1).tolist() == pytest.approx([0.5, 2.2])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 0.25),
        ({"minimum": 0.3}, 0.3),
        ({"power": 0.5}, 0.5),
        ({"ratio": 2.0}, 0.5),
        ({"ratio": 9.0}, 1.0),
    ],
)
def test_balance_follows_its_options(options, expected):
    link = GradientBalance(make_info([1.0]), **options)
    link.running[:] = torch.tensor([[2.0], [8.0]])
    assert link.statistics()["negative_factor"].item() == pytest.approx(expected)


def test_a_prior_above_the_threshold_gives_an_error_with_a_remedy():
    with pytest.raises(ValueError, match="lower the prior or the threshold"):
        AdaptiveGradient(make_info([1.0], prior=0.6))


def test_statistics_of_a_loss_without_positives_are_available():
    loss = build()
    target = random_target(4, positives=0)
    loss(random_logits(4, target), target, torch.tensor(1.0))
    assert loss.statistics()["gradient/kappa"].item() == pytest.approx(1.0)


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save(train(rank), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def train(rank):
    """Losses and state of the module after three steps, of one process or of one of two; the second has no positives in the second step."""
    loss = AdaptiveFocalLoss(torch.tensor(COUNTS), momentum=0.5, reduction="sum")
    random, values = torch.Generator().manual_seed(0), []
    for last_positive_row in (60, 30, 0):
        logits = 3 * torch.randn(60, 5, generator=random, dtype=torch.float64)
        targets = torch.zeros_like(logits)
        targets[:last_positive_row:7, 1] = 1.0
        if rank is not None:
            logits, targets = logits.chunk(2)[rank], targets.chunk(2)[rank]
        values.append(loss(logits, targets))
    return {"values": torch.stack(values), **loss.state_dict()}


def test_two_processes_with_the_module_equal_one(tmp_path: Path):
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    alone = train(None)
    torch.testing.assert_close(first.pop("values") + second.pop("values"), alone.pop("values"))
    for name, value in alone.items():
        torch.testing.assert_close(first[name], value, msg=f"{name} differs from one process")
        assert torch.equal(first[name], second[name]), f"{name} differs between ranks"
