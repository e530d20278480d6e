"""The group that owns each setting, compared with the files, and the order of precedence, compared with values given here."""

from __future__ import annotations

import itertools
import json

import pytest
from hydra import initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from afl.config import CONF
from afl.tracking import FINISHED
from afl.training import run_cell
from afl.training.build import ConfigError, bound, check_preset
from afl.training.compose import compose_cell
from afl.training.data import loader_processes
from afl.training.preparation import warn_of_frozen_random_weights

OWNED = {
    "regime": {"trainer", "optimizer", "schedule", "initial_weights", "per_detector"},
    "backbone": {"backbone", "pyramid"},
    "detector": {"detector", "family", "needs_extreme_points", "in_regime"},
}
REGIME = ("trainer", "optimizer", "schedule", "initial_weights")


def members(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.fixture(scope="module", autouse=True)
def _hydra():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def cell(*overrides: str, detector: str = "retinanet"):
    return compose_cell(detector=detector, loss="fl", overrides=list(overrides))


@pytest.mark.parametrize("group", list(OWNED))
def test_a_group_sets_only_what_it_owns(group):
    for member in members(group):
        content = OmegaConf.load(CONF / group / f"{member}.yaml")
        assert set(content) - {"defaults"} <= OWNED[group], member


def test_no_default_is_optional_or_interpolated():
    for path in CONF.rglob("*.yaml"):
        for default in OmegaConf.to_container(OmegaConf.load(path), resolve=False).get("defaults", []):
            assert "optional" not in str(default) and "${" not in str(default), path


def test_detector_backbone_and_data_set_do_not_change_a_regime():
    """Each regime is composed once with each group's members; the parts of all combinations are then merged and resolved."""
    datasets = {
        name: OmegaConf.to_container(cell(f"dataset={name}", "regime=short"), resolve=False)
        for name in members("dataset")
    }
    backbones = {
        name: OmegaConf.to_container(cell(f"backbone={name}"), resolve=False) for name in members("backbone")
    }
    detectors = {
        name: OmegaConf.to_container(cell(detector=name), resolve=False) for name in members("detector")
    }
    regimes = {
        name: OmegaConf.to_container(cell(f"regime={name}"), resolve=False) for name in members("regime")
    }
    short = {part: regimes["short"][part] for part in REGIME}
    for other in (*datasets.values(), *backbones.values(), *detectors.values()):
        assert {part: other[part] for part in REGIME} == short
    # The backbone only affects the detector, and the regime is the same for all backbones, so pairs cover all combinations.
    pairs = [(regime, "tiny") for regime in regimes] + [("short", backbone) for backbone in backbones]
    for (regime, backbone), detector in itertools.product(pairs, detectors):
        merged = OmegaConf.create(
            {
                **{part: regimes[regime][part] for part in (*REGIME, "per_detector")},
                **{part: detectors[detector][part] for part in ("detector", "in_regime", "family")},
                "pyramid": backbones[backbone]["pyramid"],
                "dataset": {"max_detections": 100},
            }
        )
        plain = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
        assert plain["optimizer"]["factory"]["lr"] > 0
        bound(merged.optimizer.factory)
        bound(merged.schedule.factory)


def test_the_command_line_overrides_all_and_a_named_optimiser_replaces_the_regimes():
    plain = OmegaConf.to_container(cell("optimizer=sgd", "trainer.batch_size=3"), resolve=True)
    assert bound(OmegaConf.create(plain).optimizer.factory).keywords == {"lr": 0.01, "momentum": 0.9}
    assert (plain["optimizer"]["weight_decay"], plain["trainer"]["batch_size"]) == (1e-4, 3)
    chosen = cell("dataset=coco", "optimizer.factory.lr=0.3", "schedule.factory.milestones=[0.5]")
    assert (chosen.optimizer.factory.lr, list(chosen.schedule.factory.milestones)) == (0.3, [0.5])


def test_a_backbone_does_not_change_the_training_of_a_data_set():
    tiny = cell("dataset=coco", "backbone=tiny")
    assert (tiny.optimizer.factory._target_, tiny.optimizer.factory.lr) == ("torch.optim.SGD", 0.01)
    assert (tiny.optimizer.weight_decay, tiny.initial_weights) == (1e-4, None)
    assert cell("dataset=custom", "backbone=tiny").initial_weights is None


def test_an_experiment_with_another_data_set_is_rejected():
    check_preset(cell("experiment=coco/cornernet", detector="cornernet"))
    with pytest.raises(ConfigError, match="dataset=coco, not of detector=cornernet dataset=shapes_lvis"):
        check_preset(cell("experiment=coco/cornernet", "dataset=shapes", detector="cornernet"))


@pytest.mark.parametrize(
    "dataset, regime", [("coco", "published"), ("lvis", "published_lvis"), ("voc", "published_voc")]
)
def test_the_error_for_a_mixed_experiment_names_the_regime_of_the_data_set(dataset, regime):
    other = "coco" if dataset != "coco" else "voc"
    with pytest.raises(ConfigError, match=f"write detector=fcos dataset={dataset} regime={regime} without"):
        check_preset(cell(f"experiment={other}/fcos", f"dataset={dataset}", detector="fcos"))
    assert cell(f"dataset={dataset}").trainer == cell(f"dataset={dataset}", f"regime={regime}").trainer


def test_the_number_of_loader_processes_is_limited_to_the_cores(monkeypatch):
    config = cell("dataset=coco")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 5}, raising=False)
    for asked, started in ((0, 0), (2, 2), (3, 3), (64, 3)):
        config.trainer.num_workers = asked
        assert loader_processes(config) == started


def test_the_experiment_small_trains_a_custom_data_set(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for number in (1, 2):
            Image.new("RGB", (60, 40), (90, 90, 40 * number)).save(tmp_path / split / f"{number}.png")
        content = {
            "images": [
                {"id": number, "file_name": f"{number}.png", "width": 60, "height": 40} for number in (1, 2)
            ],
            "annotations": [
                {"id": number, "image_id": number, "category_id": number, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0}
                for number in (1, 2)
            ],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        }  # fmt: skip
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    own = [
        "dataset.name=pets", f"dataset.root={tmp_path}", f"paths.output={tmp_path}/runs", f"paths.cache={tmp_path}/cache",
        "dataset.image_size=64", "trainer.max_duration=2steps", "trainer.batch_size=2", "trainer.device=cpu",
        "trainer.progress=none", "logger=none",
    ]  # fmt: skip
    config = cell("experiment=small", *own, detector="fcos")
    assert (config.backbone.name, config.trainer.num_workers) == ("lite0", 2)
    record = run_cell(config)
    assert (record.status, record.dataset, record.steps) == (FINISHED, "pets", 2)
    assert record.protocol["backbone"] == "lite0, ImageNet weights"


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        (["backbone.pretrained=false"], True),
        (["backbone.pretrained=false", "backbone.frozen_stages=0"], True),
        (
            ["backbone.pretrained=false", "backbone.frozen_stages=0", "backbone.frozen_batch_norm=false"],
            False,
        ),
        (["backbone.pretrained=false", "initial_weights=some.pt"], False),
        ([], False),
        (["backbone=tiny"], False),
    ],
)
def test_frozen_random_weights_are_warned_of(caplog, changes, warned):
    config = compose_cell(detector="fcos", loss="fl", overrides=["dataset=foda", *changes])
    warn_of_frozen_random_weights(config)
    assert ("can hardly learn" in caplog.text) == warned


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "optimizer.factory.momentum=0.9",
            "optimizer.factory cannot be built: .*momentum.*; correct its settings",
        ),
        ("+optimizer.factory.betas=[0.9]", "optimizer.factory cannot be built: "),
        ("+schedule.factory.gamma=0.5", "schedule.factory cannot be built: .*gamma"),
        ("loss.gamma=null", "loss cannot be built: "),
        ("detector.strides=3", "detector cannot be built: "),
        ("subset={images:8}", "subset cannot be built: .*missing"),
        ("loss.chain=null", None),
    ],
)
def test_settings_that_a_constructor_does_not_accept_give_one_line(tmp_path, change, message):
    own = [
        "dataset.folder.num_train=24", "dataset.folder.num_val=10", "initial_weights=null", "logger=none", "trainer.progress=none",
        "trainer.max_duration=2steps", "trainer.batch_size=4", "trainer.device=cpu", "trainer.pictures=0",
        f"paths.output={tmp_path}/runs", f"paths.cache={tmp_path}/cache",
    ]  # fmt: skip
    config = compose_cell(detector="fcos", loss="fl", overrides=["dataset=shapes_lvis", *own, change])
    if message is None:
        assert run_cell(config).status == FINISHED
        return
    with pytest.raises(ConfigError, match=message) as error:
        run_cell(config)
    assert "\n" not in str(error.value) and not list(tmp_path.glob("runs/*/record.json"))
