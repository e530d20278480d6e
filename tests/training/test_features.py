"""The pre-trained features that come with the repository."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from afl.training import run_cell
from afl.training.build import build_detector
from afl.training.checkpoint import load_checkpoint, save_checkpoint
from afl.training.compose import compose_cell
from afl.training.distributed import World
from afl.training.features import features_file, write_features
from afl.training.initial_weights import digest_of_weights, start_from
from detectors.contract import ClassCounts
from tests.detectors.cases import class_parameters

WORLD = World(0, 2, torch.device("cpu"))  # two processes cannot train features, but read them
TABLES = [
    ("shapes_lvis", ()),
    ("shapes_coco", ()),
    ("bccd", ("regime=short",)),
    ("trashcan", ("regime=short",)),
]


@pytest.mark.parametrize(
    "detector", ["cornernet", "centernet", "extremenet", "retinanet", "fcos", "objectbox"]
)
def test_every_table_of_the_short_regime_starts_from_a_file_of_the_repository(detector):
    files = {
        features_file(compose_cell(detector=detector, loss="afl", overrides=[f"dataset={name}", *more]))
        for name, more in TABLES
    }
    (path,) = files
    kept = load_checkpoint(path)
    assert len(set(kept["about"]["names"])) == 96
    config = compose_cell(detector=detector, loss="fl", overrides=["dataset=shapes"])
    torch.manual_seed(3)
    model = build_detector(config, ClassCounts(torch.full((30,), 9.0), torch.full((30,), 9.0)))
    before = {name: value.clone() for name, value in model.named_parameters()}
    start_from(config, model, WORLD, lambda *_, **__: pytest.fail("trained"), [str(i) for i in range(30)])
    of_classes = class_parameters(model)
    for name, value in model.named_parameters():
        assert torch.equal(value, (before if id(value) in of_classes else kept["model"])[name]), name


def test_a_run_starts_from_them_without_training_any(small_cell):
    config = small_cell("centernet", "fl", "trainer.max_duration=1steps", "initial_weights=shapes")
    record = run_cell(config)
    weights = load_checkpoint(features_file(config))["model"]
    assert record.environment["initial_weights"] == digest_of_weights(weights)
    assert [path.name for path in Path(config.paths.output).glob("*/record.json")] == ["record.json"]


def test_another_network_has_no_file(small_cell):
    config = small_cell("centernet", "fl", "initial_weights=shapes", "detector.head_channels=64")
    assert not features_file(config).exists()


@pytest.mark.parametrize("averaged", [False, True])
def test_a_file_keeps_the_evaluated_weights_and_the_classes(tmp_path, averaged):
    weights = {"backbone.weight": torch.randn(3, 2)}
    average = (
        {"module.backbone.weight": torch.randn(3, 2), "n_averaged": torch.tensor(4)} if averaged else None
    )
    state = {
        "about": {"config": {"seed": 0}, "names": ["a"]},
        "model": weights,
        "average": average,
        "step": 7,
    }
    write_features(save_checkpoint(tmp_path, {**state, "optimizer": {}}), tmp_path / "new" / "features.pt")
    kept = load_checkpoint(tmp_path / "new" / "features.pt")
    expected = average["module.backbone.weight"] if average else weights["backbone.weight"]
    assert torch.equal(kept["model"].pop("backbone.weight"), expected) and not kept["model"]
    assert (kept["about"], kept["step"]) == ({"names": ["a"]}, 7) and "optimizer" not in kept
