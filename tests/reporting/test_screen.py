"""The screen of a loss compared with its weights."""

from __future__ import annotations

import pytest
import torch

from afl.losses import class_balanced_weights
from afl.losses.maturity import Maturity
from afl.training.build import build_detector
from afl.training.compose import compose_cell
from afl.training.load import load_run
from afl.training.run import run_cell
from afl.training.screen import positive_gradients
from scripts.report import main

OPTIONS = [
    "dataset=shapes_coco", "dataset.folder.num_train=24", "dataset.folder.num_val=10", "initial_weights=null", "logger=none",
    "trainer.progress=none", "trainer.batch_size=4", "trainer.max_duration=4steps", "trainer.device=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("screen")
    options = [*OPTIONS, f"paths.output={place}/outputs", f"paths.cache={place}/cache"]
    run_cell(compose_cell(detector="fcos", loss="fl", overrides=options))
    (found,) = (place / "outputs").glob("*fcos-fl*")
    return found


def with_loss(loaded, name: str):
    config = loaded.config.copy()
    config.loss = compose_cell(detector="fcos", loss=name, overrides=OPTIONS).loss
    return build_detector(config, loaded.data.classes)


def test_the_ratio_of_a_group_is_between_its_smallest_and_largest_weight(folder):
    loaded = load_run(folder)
    found = positive_gradients(loaded, {name: with_loss(loaded, name) for name in ("fl", "cbfl")}, batches=3)
    weights = class_balanced_weights(torch.as_tensor(loaded.data.statistics.instances), cap=5.0)
    groups = loaded.data.statistics.groups
    pushed = [group for group, total in found["fl"].items() if total > 0]
    assert pushed
    for group in pushed:
        own = torch.stack([w for w, g in zip(weights, groups, strict=True) if g == group])
        ratio = found["cbfl"][group] / found["fl"][group]
        assert float(own.min()) * (1 - 1e-5) <= ratio <= float(own.max()) * (1 + 1e-5)
    assert found["cbfl"] != found["fl"]


def test_the_command_prints_a_ratio_of_one_for_the_loss_of_the_run(folder, capsys):
    main(["screen", f"run={folder}", "losses=[fl,afl]", "batches=2"])
    printed = capsys.readouterr().out
    (row,) = [line for line in printed.splitlines() if line.startswith("| fl ")]
    assert {cell.strip() for cell in row.strip("|").split("|")[1:]} == {"1.00"}
    with pytest.raises(ValueError, match="which run"):
        main(["screen"])
    for wrong, words in (("losses=[fl,af]", "Did you mean loss=afl"), ("batches=0", "at least 1")):
        with pytest.raises(ValueError, match=words):
            main(["screen", f"run={folder}", wrong])


def test_the_mean_of_afls_gate_settles_with_one_batch(folder, monkeypatch):
    """With momentum 0 a single update gives the mean of the batch; with 0.99 the repeated batch must lead to the same mean."""
    loaded = load_run(folder)
    settled, direct = with_loss(loaded, "afl"), with_loss(loaded, "afl")
    positive_gradients(loaded, {"": settled}, batches=1)
    monkeypatch.setattr("afl.training.screen.SETTLING_UPDATES", 1)
    for maturity in maturities(direct):
        maturity.momentum = 0.0
    positive_gradients(loaded, {"": direct}, batches=1)
    assert maturities(settled)
    for found, expected in zip(maturities(settled), maturities(direct), strict=True):
        way = expected.ghat.item() - expected.ghat_0
        assert way != 0 and abs(found.ghat.item() - expected.ghat.item()) < 0.01 * abs(way)


def maturities(detector) -> list[Maturity]:
    return [module for module in detector.modules() if isinstance(module, Maturity)]
