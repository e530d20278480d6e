"""The callables that each part of a config may name: all public callables of the project, of torch's optimisers and of some of
Python's modules, compared with lists written by hand."""

from __future__ import annotations

import builtins
import importlib
import os
import pkgutil
import re
import shutil
import subprocess

import pytest
import torch
from omegaconf import OmegaConf

import afl
import datasets
import detectors
from afl.config import CONF, ConfigError
from afl.training.build import check_targets, instantiate

TRANSFORMS = {"ColorJitter", "CropTransform", "EvalResize", "FixedTransform", "PadOnly", "ResizeTransform"}
BY_PLACE = {
    "loss": r"afl\.losses\..*",
    "loss.chain.a": r"afl\.losses\..*",
    "detector": r"detectors\..*",
    "backbone": r"detectors\..*",
    "dataset.train_transform.dense": r"datasets\..*",
    "dataset.eval_transform.heatmap.color": r"datasets\..*",
    "dataset.train": r"datasets\..*\.(read|generate)_\w+",
    "dataset.train.folder": r"datasets\..*\.(read|generate)_\w+",
    "dataset.folder": r"datasets\..*\.generate_\w+",
    "optimizer.factory": r"torch\.optim\..*",
    "schedule.factory": r"afl\.training\.schedule\.\w+_schedule",
    "logger": r"afl\.tracking\.(tracker\.NullTracker|wandb\.WandbTracker|local\.(CsvTracker|TensorBoardTracker))",
    "": r"nothing",
    "trainer": r"nothing",
    "paths.x": r"nothing",
    "losses": r"nothing",
    "dataset": r"nothing",
}


def modules_of(package):
    yield package
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        yield importlib.import_module(found.name)


def public_callables() -> list[tuple[str, object]]:
    """(dotted name, object) of every callable with a public name."""
    modules = [
        *modules_of(afl), *modules_of(datasets), *modules_of(detectors), torch.optim, torch.optim.lr_scheduler,
        torch.optim.swa_utils, torch, os, shutil, subprocess, builtins,
    ]  # fmt: skip
    return [
        (f"{module.__name__}.{name}", value)
        for module in modules
        for name, value in vars(module).items()
        if not name.startswith("_") and callable(value)
    ]


def allowed(place: str, target: str) -> bool:
    try:
        check_targets({"_target_": target}, place)
    except ConfigError:
        return False
    return True


def test_every_part_may_only_call_its_own_kind():
    found = public_callables()
    assert len(found) > 1000
    for place, pattern in BY_PLACE.items():
        called = set()
        for target, value in found:
            if not allowed(place, target):
                continue
            origin = f"{value.__module__}.{value.__qualname__}"
            assert re.fullmatch(pattern, origin), (place, target)
            called.add(value)
        if place.startswith(("loss", "detector", "backbone")) and place != "losses":
            assert called and all(issubclass(one, torch.nn.Module) for one in called), place
        if "_transform" in place:
            assert {one.__name__ for one in called} == TRANSFORMS
        if place == "optimizer.factory":
            assert {torch.optim.SGD, torch.optim.AdamW} < called
            assert all(issubclass(one, torch.optim.Optimizer) for one in called)


@pytest.mark.parametrize("place", ["loss", "detector", "backbone", "dataset.eval_transform.dense"])
@pytest.mark.parametrize(
    "target",
    ["datasets.generate_shapes", "datasets.read_coco", "afl.tracking.WandbTracker", "afl.training.run_cell", "os.system",
     "builtins.eval", "afl.training.lock.os.system", "datasets.files.shutil.rmtree", "torch.hub.load", "torch.optim.SGD",
     "afl.losses.ClassificationLoss.forward.__globals__.get", "hydra.utils.call", "afl.tracking.write_text"],
)  # fmt: skip
def test_parts_of_a_checkpoint_cannot_create_readers_generators_or_trackers(place, target):
    assert not allowed(place, target)


def test_every_target_of_the_configs_is_allowed_in_its_part():
    found = 0
    for path in CONF.rglob("*.yaml"):
        parts = path.relative_to(CONF).parts
        content = OmegaConf.to_container(OmegaConf.load(path))
        if not isinstance(content, dict):
            continue
        place = parts[0] if len(parts) > 1 and "@package _global_" not in path.read_text() else ""
        found += str(content).count("_target_")
        check_targets(literal(content), place)
    assert found > 60


def literal(content):
    """``content`` without references, which are checked when the whole config is resolved."""
    if isinstance(content, dict):
        return {
            key: literal(value)
            for key, value in content.items()
            if "${" not in str(value) or isinstance(value, dict | list)
        }
    return [literal(value) for value in content] if isinstance(content, list) else content


def test_a_part_without_its_whole_config_cannot_be_called():
    with pytest.raises(ConfigError):
        instantiate(OmegaConf.create({"_target_": "afl.losses.ClassificationLoss"}))
    assert isinstance(
        instantiate(OmegaConf.create({"backbone": {"_target_": "detectors.TinyBackbone"}}).backbone),
        torch.nn.Module,
    )
