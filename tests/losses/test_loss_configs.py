"""Every file of conf/loss composes and builds its loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from tests.losses.cases import loss_and_gradient, make_info, random_logits, random_target

CONF = Path(__file__).parents[2] / "conf"
ARMS = {
    "fl": [],
    "fl_positive": ["positive_scale"],
    "cbl": ["class_weights"],
    "cbfl": ["class_weights"],
    "cbfl_deferred": ["class_weights"],
    "afl": ["class_weights", "adaptive_gradient"],
    "afl_per_class": ["class_weights", "adaptive_gradient"],
    "afl_balanced": ["class_weights", "gradient_balance", "adaptive_gradient"],
}
COUNTS = [1400.0, 567.0, 87.0, 12.0, 0.0]


def build(*overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        # Only the tested group is composed, because the project's defaults need a detector and a data set.
        config = compose(overrides=list(overrides))
    return instantiate(config.loss)(make_info(COUNTS))


@pytest.mark.parametrize("arm", ARMS)
def test_config_builds_its_chain_and_trains_on_anchor_and_heat_map_targets(arm):
    loss = build(f"+loss={arm}")
    assert list(loss.chain) == ARMS[arm]
    assert (loss.gamma, loss.alpha) == ((0.0, -1.0) if arm == "cbl" else (2.0, 0.25))
    for seed, scaled in enumerate((0, 20)):
        target = random_target(seed, scaled=scaled, ignored=True)
        logits = random_logits(seed, target)
        value, gradient = loss_and_gradient(loss(logits, target, torch.tensor(6.0)), logits)
        loss.update()
        assert value > 0 and gradient.isfinite().all()


def test_every_config_is_tested_and_starts_with_a_description():
    files = {path.stem: path.read_text() for path in (CONF / "loss").glob("*.yaml")}
    assert set(ARMS) <= set(files)
    assert all(text.startswith("# ") and text.splitlines()[0].endswith(".") for text in files.values())


def test_the_command_line_extends_shortens_and_changes_the_chain():
    loss = build(
        "+loss=afl",
        "+loss.chain.balance={_target_:afl.losses.GradientBalance,_partial_:true}",
        "loss.chain.class_weights.cap=10",
        "+loss.alpha=0.5",
    )
    assert list(loss.chain) == ["class_weights", "adaptive_gradient", "balance"]
    assert loss.chain["class_weights"].weight.max() == 10 and loss.alpha == 0.5
    assert list(build("+loss=afl", "~loss.chain.class_weights").chain) == ["adaptive_gradient"]
    assert list(build("+loss=afl", "loss.chain.class_weights=null").chain) == ["adaptive_gradient"]
