"""Sweep files read by W&B's code: the commands of its agent compose to the drawn settings."""

from __future__ import annotations

import itertools
import random
import sys

import pytest
import yaml
from omegaconf import OmegaConf

from afl.config import CONF
from afl.training.compose import compose_cell
from scripts.entry import unknown_choice

pytest.importorskip("wandb")
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args  # noqa: E402

SWEEPS = sorted((CONF / "sweeps").glob("*.yaml"))
FIGURES = {"AP", "AP_r"}  # of a run's summary


def read(path) -> dict:
    return yaml.safe_load(path.read_text())


def draws(parameters: dict) -> list[dict]:
    """Settings that the server may choose: all corners of ranges, or some points of a grid."""
    choices = {}
    for name, given in parameters.items():
        choices[name] = given.get("values") or (
            [given["value"]] if "value" in given else [given["min"], given["max"]]
        )
    everything = [dict(zip(choices, one, strict=True)) for one in itertools.product(*choices.values())]
    return random.Random(0).sample(everything, min(4, len(everything)))


def command(sweep: dict, setting: dict) -> list[str]:
    """The command that W&B's agent would run."""
    arguments = create_sweep_command_args(
        {"args": {name: {"value": value} for name, value in setting.items()}}
    )
    words = []
    for word in create_sweep_command(sweep["command"]):
        if word == "${args_no_hyphens}":
            words += arguments["args_no_hyphens"]
        else:
            words.append({"${env}": "/usr/bin/env", "${interpreter}": sys.executable}.get(word, word))
    return words


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_commands_of_the_agent_compose_to_the_drawn_settings(path):
    sweep = read(path)
    assert sweep["metric"]["name"] in FIGURES and sweep["metric"]["goal"] == "maximize"
    for setting in draws(sweep["parameters"]):
        words = command(sweep, setting)
        assert words[:4] == ["/usr/bin/env", sys.executable, "-m", "scripts.train"]
        overrides = words[4:]
        assert unknown_choice(overrides) is None
        config = compose_cell(
            detector=setting["detector"],
            loss=setting["loss"],
            overrides=[word for word in overrides if not word.startswith(("detector=", "loss="))],
        )
        for name, value in setting.items():
            if name in ("detector", "loss", "dataset"):
                assert config.cell[name] == value
            else:
                assert OmegaConf.select(config, name) == pytest.approx(value), name


def test_the_sweeps_are_a_grid_of_detectors_and_losses_and_a_search_of_afl():
    grid, search = read(CONF / "sweeps" / "detector_loss.yaml"), read(CONF / "sweeps" / "afl_search.yaml")
    detectors = {path.stem for path in (CONF / "detector").glob("*.yaml")}
    assert grid["method"] == "grid" and set(grid["parameters"]["detector"]["values"]) == detectors
    assert search["method"] == "bayes"
    for name in ("tau", "kappa", "cap", "beta"):
        assert any(key.endswith(f".{name}") for key in search["parameters"])
