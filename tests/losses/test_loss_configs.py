"""The files of conf/loss: their descriptions, changes on the command line, and hard sampling and sampling-free on every kind of map."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf

from afl.losses import AdaptiveFocalLoss
from tests.losses.cases import CONF, loss_and_gradient, loss_of_config, make_info, plain_target, random_target

INFO = make_info([1400.0, 567.0, 87.0, 12.0, 0.0])
METHODS = ["bce", "ohem", "ssd", "libra", "sampling_free", "ap_loss", "dr_loss"]


def claims(rows: int):
    """ObjectBox's class map: every location is a positive, and the last one is padding."""
    last = torch.arange(rows) == rows - 1
    positive = torch.where(last, -1, torch.arange(rows) * 5 + torch.arange(rows) % 5)
    return plain_target(rows, 5, positive.tolist(), ignored=last)


MAPS = {
    "anchors": (random_target(1, scaled=0, ignored=True), True),
    "anchors_with_iou": (replace(random_target(1, scaled=0), location_overlap=torch.rand(60) * 0.5), True),
    "heat_map": (random_target(2, scaled=20, ignored=True, verified=True), False),
    "objectness": (random_target(3, classes=1, scaled=0, soft=True), True),
    "class_of_positives": (claims(9), True),
    "class_of_nothing": (claims(0), True),
    "no_objects": (random_target(4, positives=0), True),
    "heat_map_without_objects": (random_target(4, positives=0, padding=0, scaled=0), False),
}


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("method", METHODS)
def test_two_steps_on_every_kind_of_map_are_finite(method, kind):
    target, dense_positives = MAPS[kind]
    info = replace(make_info([9.0] * target.num_classes), dense_positives=dense_positives)
    loss = loss_of_config(info, f"+loss={method}").train()
    torch.manual_seed(0)
    logits = (4 * torch.randn(target.num_locations, target.num_classes)).requires_grad_()
    for _ in range(2):
        value, gradient = loss_and_gradient(
            loss(logits, target, torch.tensor(6.0), localization=torch.tensor(0.7)), logits
        )
        loss.update()
        assert value.shape == () and value.dtype == torch.float32 and value.isfinite()
        assert gradient.isfinite().all()
        if target.ignored is not None:
            assert (gradient[target.ignored] == 0).all()
    assert all(torch.as_tensor(number).isfinite().all() for number in loss.statistics().values())


@pytest.mark.parametrize("link", ["OnlineHardExampleMining", "HardNegativeMining", "IouBalancedSampling"])
def test_hard_sampling_can_follow_any_chain_on_the_command_line(link):
    info = make_info([9.0] * 5)
    loss = loss_of_config(
        info, "+loss=afl", f"+loss.chain.mining={{_target_:afl.losses.{link},_partial_:true}}"
    )
    assert list(loss.chain) == ["class_weights", "adaptive_gradient", "mining"]
    target = random_target(5, scaled=0)
    logits = torch.randn(60, 5, requires_grad=True)
    value, gradient = loss_and_gradient(loss(logits, target, torch.tensor(6.0)), logits)
    assert value.isfinite() and gradient.isfinite().all()


def test_every_config_starts_with_a_description():
    files = [path.read_text() for path in (CONF / "loss").glob("*.yaml")]
    assert all(text.startswith("# ") and text.splitlines()[0].endswith(".") for text in files)


def test_the_loss_alone_has_the_settings_of_the_config():
    chain = OmegaConf.to_container(OmegaConf.load(CONF / "loss" / "afl.yaml").chain)
    settings = {
        key: value for link in chain.values() for key, value in link.items() if not key.startswith("_")
    }
    parameters = inspect.signature(AdaptiveFocalLoss).parameters
    shared = settings.keys() & parameters.keys()
    assert shared >= {"beta", "normalize", "cap", "kappa", "tau", "momentum"}
    assert {key: parameters[key].default for key in shared} == {key: settings[key] for key in shared}


def test_the_command_line_extends_shortens_and_changes_the_chain():
    loss = loss_of_config(
        INFO,
        "+loss=afl",
        "+loss.chain.balance={_target_:afl.losses.GradientBalance,_partial_:true}",
        "loss.chain.class_weights.cap=10",
        "+loss.alpha=0.5",
    )
    assert list(loss.chain) == ["class_weights", "adaptive_gradient", "balance"]
    assert loss.chain["class_weights"].weight.max() == 10 and loss.alpha == 0.5
    assert list(loss_of_config(INFO, "+loss=afl", "~loss.chain.class_weights").chain) == ["adaptive_gradient"]
    assert list(loss_of_config(INFO, "+loss=afl", "loss.chain.class_weights=null").chain) == [
        "adaptive_gradient"
    ]
