"""Runs that start from a checkpoint: their weights, compared with those in the file."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pytest
import torch

from afl.training import run_cell
from afl.training.build import build_detector
from afl.training.data import read_data
from afl.training.distributed import World
from afl.training.initial_weights import digest_of_weights, start_from
from detectors.contract import ClassCounts
from tests.detectors.cases import class_parameters

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
    loaded, _ = start_from(config, models[1], WORLD, lambda *_, **__: pytest.fail("trained"), names)
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
    torch.save({"model": trained.state_dict(), "about": {"names": NAMES}}, tmp_path / "first.pt")
    with caplog.at_level(logging.INFO, "afl.training.initial_weights"):
        fresh, model, loaded = started(config, tmp_path / "first.pt", names)
    of_classes = class_parameters(model)
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


def test_the_record_states_the_weights_that_a_run_started_from(small_cell, tmp_path):
    config = small_cell("fcos", "fl", "trainer.max_duration=2steps")
    assert run_cell(config).environment["initial_weights"] is None
    weights = build_detector(config, counts(3)).state_dict()
    torch.save({"model": weights}, tmp_path / "first.pt")
    config.initial_weights = str(tmp_path / "first.pt")
    record = run_cell(config)
    # The digest, computed here over one string of bytes.
    parts = [name.encode() + weights[name].numpy().tobytes() for name in sorted(weights)]
    assert record.environment["initial_weights"] == hashlib.sha256(b"".join(parts)).hexdigest()[:12]
    # Without its record the run continues from its last checkpoint, which keeps the digest.
    (Path(config.paths.output) / record.key / "record.json").unlink()
    assert run_cell(config).environment == record.environment


def test_the_digest_of_weights_depends_on_each_name_and_value():
    weights = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3)}
    others = [
        {"a": torch.tensor([1.0, 2.5]), "b": torch.tensor(3)},
        {"a": torch.tensor([1.0, 2.0]), "c": torch.tensor(3)},
        {"a": torch.tensor([1.0, 2.0], dtype=torch.bfloat16), "b": torch.tensor(3)},
    ]
    assert digest_of_weights(dict(reversed(weights.items()))) == digest_of_weights(weights)
    assert len({digest_of_weights(value) for value in (weights, *others)}) == 4
    # Files of other projects have values that are no tensors; they are not loaded either.
    assert digest_of_weights(weights | {"version": 3}) == digest_of_weights(weights)
