"""Invalid values are rejected, by setting."""

import pytest
from omegaconf import OmegaConf

from afl.config import CONF, ConfigError, check_values, unknown_setting
from afl.config.values import RULES
from afl.training.duration import Duration
from scripts.entry import compose_config

BASE = compose_config(["detector=fcos", "backbone=tiny"])
BASE.cell = {"dataset": "shapes"}


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("seed", 1.5, "seed is 1.5; it needs a whole number from 0 to 4294967295"),
        ("seed", "../../x", "seed is '../../x'; it needs a whole number"),
        ("seed", -1, "whole number from 0"),
        ("seed", 2**32, "whole number from 0"),
        ("seed", True, "whole number"),
        ("trainer.accumulate", 0, "trainer.accumulate is 0; it needs a whole number of at least 1"),
        ("trainer.threads", -3, "whole number of at least 1 or null"),
        ("trainer.clip_norm", -1, "a number above 0 or null"),
        ("trainer.clip_norm", float("nan"), "a number above 0 or null"),
        ("trainer.batch_size", None, "trainer.batch_size is null; it needs a whole number"),
        ("trainer.batch_size", "abc", "whole number"),
        ("trainer.batch_size", 2.5, "whole number"),
        ("trainer.num_workers", -1, "whole number of at least 0"),
        ("trainer.batch_size", 4.0, "whole number"),
        ("seed", 1e3, "whole number"),
        ("trainer.device", "mps", "trainer.device is 'mps'; it needs auto, cpu, cuda or a GPU such as cuda:1"),
        ("trainer.test_time.scales", ["big"], "a list of numbers above 0"),
        ("trainer.test_time.scales", [], "a list of numbers above 0"),
        ("trainer.max_duration", "600steps+", "a duration such as"),
        ("trainer.max_duration", 60, "a duration such as 600steps"),
        ("trainer.checkpoint_every", "often", "a duration such as"),
        ("trainer.ema", 2, "a number above 0 and at most 0.999999 or null"),
        ("trainer.ema", 1, "a number above 0 and at most 0.999999 or null"),
        ("trainer.test_time.nms_iou", 60, "a number from 0 to 1"),
        ("trainer.compile", 1, "true or false or auto"),
        ("trainer.progress", "loud", "auto or bar or lines or none"),
        ("dataset.image_size", -3, "whole number of at least 1"),
        ("dataset.policy", "maybe", "error or skip"),
        ("dataset.name", None, "dataset.name is null"),
        ("dataset.root", None, "dataset.root is null; it needs a folder"),
        ("paths.output", 3, "a folder"),
    ],
)  # fmt: skip
def test_an_invalid_value_is_named_with_the_accepted_values(key, value, words):
    config = BASE.copy()
    check_values(config)
    OmegaConf.update(config, key, value)
    with pytest.raises(ConfigError) as error:
        check_values(config)
    assert words in str(error.value) and str(error.value).startswith(key) and "\n" not in str(error.value)


def test_the_rules_name_existing_settings():
    config = compose_config(["detector=fcos", "dataset=custom"])
    config.cell = {"dataset": "custom"}
    for key in RULES:
        assert unknown_setting(key, config) is None, key


PRESETS = [
    f"experiment={path.relative_to(CONF / 'experiment').with_suffix('')}"
    for path in sorted((CONF / "experiment").rglob("*.yaml"))
]
DATASETS = [f"dataset={path.stem}" for path in sorted((CONF / "dataset").glob("*.yaml"))]
REGIMES = [f"regime={path.stem}" for path in sorted((CONF / "regime").glob("*.yaml"))]


@pytest.mark.parametrize("choice", [*PRESETS, *DATASETS, *REGIMES])
def test_the_values_of_every_preset_are_accepted(choice):
    own = [] if choice.count("/") else ["detector=fcos"]
    check_values(compose_config([*own, "dataset.name=birds", "dataset.root=/data/birds", choice]))


@pytest.mark.parametrize("text", ["600steps+12epochs", "1.5epochs", " 10 percent ", "20000images + 1step"])
def test_a_duration_that_can_be_parsed_is_accepted(text):
    config = BASE.copy()
    config.trainer.max_duration = text
    check_values(config)
    assert Duration.parse(text).amount > 0


@pytest.mark.parametrize("name", ["custom", "custom_voc", "custom_yolo"])
def test_the_remedy_of_own_data_names_every_setting_of_a_path(name):
    content = OmegaConf.to_container(OmegaConf.load(CONF / "dataset" / f"{name}.yaml"))
    for key in {"root", *content["train"], *content["val"]} - {"_target_"}:
        assert key in content["remedy"]
