"""Losses that start from a finished run: retraining changes only the class layers, post-hoc remedies only the evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from afl.config import ConfigError
from afl.tracking import read_metrics, read_record
from afl.training import run_cell, run_identity
from afl.training.build import build_detector
from afl.training.checkpoint import CheckpointError, load_checkpoint
from afl.training.data import read_data
from afl.training.distributed import World
from afl.training.initial_weights import start_from


def weights(config, loss: str) -> dict[str, torch.Tensor]:
    (folder,) = Path(config.paths.output).glob(f"*-{loss}-*")
    return load_checkpoint(folder / "checkpoints" / "last.pt")["model"]


@pytest.mark.parametrize("detector", ["centernet", "objectbox"])
def test_the_second_stage_trains_only_class_layers_on_the_features_of_the_first(small_cell, detector):
    config = small_cell(detector, "crt", "loss.chain.rfs.images=10")
    assert run_cell(config).status == "finished"
    first, second = weights(config, "fl"), weights(config, "crt")
    model = build_detector(config, read_data(config).classes)
    own = {
        id(parameter)
        for layers in model.class_layers().values()
        for layer in layers
        for parameter in layer.parameters()
    }
    class_layers = {name for name, parameter in model.named_parameters() if id(parameter) in own}
    assert class_layers
    for name, value in first.items():
        # Counters of batches increase, but no statistic depends on them.
        if not name.startswith("classification.") and not name.endswith("num_batches_tracked"):
            assert torch.equal(second[name], value) == (name not in class_layers), name


def test_the_first_stage_is_the_ordinary_run_of_focal_loss_and_is_trained_once(small_cell):
    first = small_cell("centernet", "fl")
    key = run_cell(first).key
    run_cell(small_cell("centernet", "crt", "loss.chain.rfs.images=10"))
    assert [path.name for path in Path(first.paths.output).glob("*-fl-*")] == [key]


def test_a_given_checkpoint_is_the_first_stage_and_several_processes_need_one(small_cell, tmp_path):
    config = small_cell("centernet", "crt")
    data = read_data(config)
    classes, names = data.classes, data.statistics.names
    trained = build_detector(config, classes)
    torch.save({"model": trained.state_dict()}, tmp_path / "first.pt")
    model = build_detector(config, classes)
    many = World(0, 2, torch.device("cpu"))
    with pytest.raises(ConfigError, match="loss=crt starts from a finished run"):
        start_from(config, model, many, lambda _: pytest.fail("trained"), names)
    config.initial_weights = str(tmp_path / "first.pt")
    start_from(config, model, many, lambda _: pytest.fail("trained"), names)
    (layer,), (before,) = model.class_layers()["heat"], trained.class_layers()["heat"]
    assert not torch.equal(layer.weight, before.weight) and (layer.bias.sigmoid() - 0.1).abs().max() < 1e-6
    assert torch.equal(model.size[-1].weight, trained.size[-1].weight)


@pytest.mark.parametrize("loss", ["posthoc_adjustment", "norcal", "tau_norm", "fracal"])
def test_a_post_hoc_remedy_evaluates_the_run_of_focal_loss_as_if_it_had_trained_itself(
    small_cell, tmp_path, monkeypatch, loss
):
    settings = ["logger=csv", "trainer.log_every=1steps"]
    config = small_cell("fcos", loss, *settings)
    shared = run_cell(config)
    (first,) = Path(config.paths.output).glob("*-fl-*")
    assert (shared.train_seconds, shared.images_per_second) == (
        0.0,
        None,
    ) and shared.seconds == shared.eval_seconds
    assert read_record(first / "record.json").train_seconds > 0
    monkeypatch.setattr(run_identity, "only_evaluates", lambda config: False)
    alone = small_cell("fcos", loss, *settings)
    alone.paths.output = str(tmp_path / "trained")
    trained = run_cell(alone)
    assert [path.name for path in (tmp_path / "trained").iterdir()] == [shared.key] == [trained.key]
    assert shared.metrics == trained.metrics and shared.per_class == trained.per_class
    assert shared.steps == trained.steps
    ours, theirs = Path(config.paths.output) / shared.key, tmp_path / "trained" / trained.key
    # The constant shift of the remedy is only a figure of the run that trained with it.
    apart = ("images_per_second", "gradient/classification/posthoc/shift_max")
    for lines in zip(
        read_metrics(ours / "metrics.jsonl"), read_metrics(theirs / "metrics.jsonl"), strict=True
    ):
        one, other = ({name: value for name, value in line.items() if name not in apart} for line in lines)
        assert one == other
    curves = [
        [
            line
            for line in (folder / "curves.csv").read_text().splitlines()
            if not any(name in line for name in apart)
        ]
        for folder in (ours, theirs)
    ]
    assert curves[0] == curves[1] and len(curves[0]) > shared.steps
    states = [load_checkpoint(folder / "checkpoints" / "last.pt") for folder in (ours, theirs)]
    assert states[0]["run"] == states[1]["run"] and states[0]["about"]["names"] == states[1]["about"]["names"]
    assert states[0]["about"]["config"]["cell"]["loss"] == loss
    assert all(torch.equal(states[0]["model"][name], value) for name, value in states[1]["model"].items())


def test_evaluations_of_the_first_stage_are_not_those_of_a_post_hoc_remedy(small_cell):
    config = small_cell("fcos", "norcal", "trainer.evaluate_every=1steps")
    record = run_cell(config)
    lines = read_metrics(Path(config.paths.output) / record.key / "metrics.jsonl")
    assert [line["step"] for line in lines if any(name.startswith("val/") for name in line)] == [record.steps]


def test_a_post_hoc_remedy_of_a_first_stage_without_weights_gives_the_remedy(small_cell):
    run_cell(small_cell("fcos", "fl"))
    config = small_cell("fcos", "norcal")
    (first,) = Path(config.paths.output).glob("*-fl-*")
    (first / "checkpoints" / "last.pt").unlink()
    with pytest.raises(
        CheckpointError, match=f"evaluates the weights of {first.name}, .* delete {first} to train"
    ):
        run_cell(config)


def test_a_post_hoc_remedy_of_another_loss_trains_itself(small_cell):
    link = "+loss.chain.posthoc={_target_:afl.losses.TauNormalization,_partial_:true}"
    config = small_cell("fcos", "cbfl", link)
    assert run_cell(config).status == "finished"
    assert not list(Path(config.paths.output).glob("*-fl-*"))
