"""Overrides of a saved config compared with the same overrides on the command line of the training."""

from __future__ import annotations

import re

import pytest
import yaml
from omegaconf import OmegaConf

from afl.config import CONF, CONFIG, UNRESOLVED, ConfigError, read_config, save_config
from scripts.entry import compose_config

# With `experiment=small`, the images of every detector have the size dataset.image_size.
TRAINED = ["experiment=small", "dataset=custom", "detector=fcos", "backbone=tiny", "dataset.root=/data/good"]


def composed(*overrides: str):
    config = compose_config([*TRAINED, *overrides])
    config.cell = {"detector": "fcos", "loss": "fl", "dataset": "${dataset.name}"}
    return config


@pytest.fixture
def folder(tmp_path):
    for name, text in save_config(composed()).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def plain(config):
    return OmegaConf.to_container(config, resolve=True)


@pytest.mark.parametrize(
    "override",
    ["dataset.root=/data/else (1)", "dataset.policy=skip", "dataset.max_detections=300", "trainer.batch_size=2",
     "dataset.train.annotations=/x.json", "pyramid.channels=48", "detector.max_detections=7"],
)  # fmt: skip
def test_an_override_has_the_same_effect_as_in_training(folder, override):
    assert plain(read_config(folder, [override])) == plain(composed(override)) != plain(read_config(folder))


def references() -> dict[str, str]:
    """The settings in the files of conf/ that refer to another setting, each with that setting."""
    found = {}

    def walk(content, name):
        if isinstance(content, dict | list):
            for key, value in content.items() if isinstance(content, dict) else enumerate(content):
                walk(value, f"{name}.{key}" if name else str(key))
        elif isinstance(content, str):
            for match in re.finditer(r"\$\{(?:oc\.select:)?([\w.]+)[,}]", content):
                found[name] = match[1]

    for path in sorted(CONF.rglob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        parts = path.relative_to(CONF).parts
        content = yaml.safe_load(text)
        if isinstance(content, dict):
            content.pop("defaults", None)
            walk(content, parts[0] if len(parts) > 1 and "@package _global_" not in text else "")
    return found


def test_a_referenced_setting_also_changes_its_references(folder):
    """For all references in conf/, an override of the source is not lost."""
    config = composed()
    following = references()
    literal, dependent = {}, {}
    for key in sorted(set(following.values())):
        value = OmegaConf.select(config, key)
        if isinstance(value, bool) or not isinstance(value, str | int):
            continue
        changed = "other" if key == "dataset.name" else "/elsewhere" if isinstance(value, str) else value + 1
        (dependent if key in following else literal)[key] = f"{key}={changed}"
    assert len(literal) > 5
    # Independent sources are changed together. A source that refers to another one would hide it, so it is changed separately.
    for overrides in (list(literal.values()), *([override] for override in dependent.values())):
        assert plain(read_config(folder, overrides)) == plain(composed(*overrides)), overrides


def test_without_references_a_config_can_be_read_but_not_changed(folder):
    (folder / UNRESOLVED).unlink()
    assert plain(read_config(folder)) == plain(composed())
    with pytest.raises(ConfigError, match=rf"^{folder} has no {UNRESOLVED}") as error:
        read_config(folder, ["dataset.root=/data/else"])
    assert "\n" not in str(error.value)


def test_references_to_anything_outside_the_config_are_rejected(folder, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    config = composed()
    config.dataset.remedy = "${oc.env:SECRET}"
    texts = save_config(config)
    assert "oc.env" not in texts[UNRESOLVED] and "hunter2" in texts[UNRESOLVED]
    text = (folder / UNRESOLVED).read_text().replace("policy: error", "policy: ${oc.env:SECRET}")
    (folder / UNRESOLVED).write_text(text)
    with pytest.raises(ConfigError, match="a saved config may only refer to its own settings"):
        read_config(folder)


def test_an_edited_or_damaged_file_gives_one_line(folder):
    text = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(text.replace("/data/good", "/data/moved"))
    with pytest.raises(ConfigError, match="one of them was edited"):
        read_config(folder)
    (folder / CONFIG).write_text("a: [1")
    with pytest.raises(ConfigError, match="config.yaml is damaged") as error:
        read_config(folder)
    assert "\n" not in str(error.value)
    (folder / CONFIG).unlink()
    with pytest.raises(ConfigError, match="not a run directory"):
        read_config(folder)


def test_a_misspelt_run_directory_gets_the_nearest_name(tmp_path):
    for name in ("birds-fcos-fl-s0-1a2b3c4d", "birds-centernet-afl-s1-5e6f7a8b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / CONFIG).write_text("seed: 0\n")
    wrong = tmp_path / "birds-fcos-fl-s0-1a2b3c4"
    message = f"{wrong} does not exist. Did you mean {tmp_path}/birds-fcos-fl-s0-1a2b3c4d?"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        read_config(wrong)
    with pytest.raises(
        ConfigError, match=r"nothing does not exist\. Name the directory of a run, such as outputs/NAME\.$"
    ):
        read_config(tmp_path / "nothing")
