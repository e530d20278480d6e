"""Runs that start from a checkpoint: their weights, compared with those in the file."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from afl.training import run_cell
from afl.training.build import build_detector
from afl.training.data import read_data
from afl.training.distributed import World
from afl.training.initial_weights import start_from
from detectors.contract import ClassCounts

WORLD = World(0, 1, torch.device("cpu"))
NAMES = ["cat", "dog", "fox"]


def counts(number: int) -> ClassCounts:
    return ClassCounts(torch.full((number,), 9.0), torch.full((number,), 9.0))


def started(config, path: Path, names: list[str]):
    """A fresh detector, the same one after it started from the file, and the class layers that were loaded."""
    config.initial_weights = str(path)
    models = []
    for _ in range(2):
        torch.manual_seed(7)
        models.append(build_detector(config, counts(len(names))))
    loaded = start_from(config, models[1], WORLD, lambda *_, **__: pytest.fail("trained"), names)
    return *models, loaded


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["cat", "dog", "owl"], "it lacks fox; only it has owl"),
        (["dog", "cat", "fox"], "they are in another order"),
        (NAMES, None),
    ],
)
@pytest.mark.parametrize("detector", ["centernet", "objectbox", "retinanet"])
def test_class_layers_are_loaded_for_the_same_classes_only(
    small_cell, tmp_path, caplog, detector, names, said
):
    config = small_cell(detector, "fl")
    trained = build_detector(config, counts(3))
    torch.save(
        {"model": trained.state_dict(), "about": {"names": NAMES}},
        tmp_path / "first.pt",
    )
    with caplog.at_level(logging.INFO, "afl.training.initial_weights"):
        fresh, model, loaded = started(config, tmp_path / "first.pt", names)
    of_classes = {
        id(parameter)
        for name, layers in model.class_layers().items()
        for layer in layers
        for parameter in layer.parameters()
        # Whether there is an object has nothing to do with its class.
        if name != "objectness"
    }
    source = {
        name: fresh if id(own) in of_classes and said else trained for name, own in model.named_parameters()
    }
    for name, own in model.named_parameters():
        assert torch.equal(own, source[name].get_parameter(name)), name
    assert bool(loaded) == (said is None or detector == "objectbox")
    assert (said is None) == ("class layer" not in caplog.text) and (said or "") in caplog.text


def test_the_classes_of_a_file_without_names_are_not_compared(small_cell, tmp_path):
    config = small_cell("centernet", "fl")
    trained = build_detector(config, counts(3))
    torch.save({"model": trained.state_dict()}, tmp_path / "plain.pt")
    _, model, loaded = started(config, tmp_path / "plain.pt", NAMES)
    assert loaded and torch.equal(model.heat[-1].weight, trained.heat[-1].weight)


def test_a_run_compares_its_classes_with_those_of_the_file(small_cell, caplog):
    config = small_cell("centernet", "fl", "trainer.max_duration=1steps")
    path = Path(config.paths.output) / run_cell(config).key / "checkpoints" / "last.pt"
    assert torch.load(path)["about"]["names"] == list(read_data(config).statistics.names)
    for change, said in ((str, False), (str.upper, True)):
        saved = torch.load(path)
        saved["about"]["names"] = [change(name) for name in saved["about"]["names"]]
        file = path.with_name(f"{change.__name__}.pt")
        torch.save(saved, file)
        caplog.clear()
        with caplog.at_level(logging.INFO, "afl.training.initial_weights"):
            run_cell(small_cell("centernet", "fl", "trainer.max_duration=1steps", f"initial_weights={file}"))
        assert ("class layer" in caplog.text) == said
