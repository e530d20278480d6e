"""Priors from the data: the initial output of a head equals the counted share of positives."""

import pytest
import torch
from omegaconf import OmegaConf

from afl.training.build import build_detector
from afl.training.data import read_data, training_batches
from afl.training.distributed import World
from afl.training.initial_weights import start_from
from afl.training.inputs import normalise, targets_of
from afl.training.prior import adapt_threshold, initialise_priors
from detectors.contract import ClassCounts
from tests.training.test_run import DETECTORS


@pytest.mark.parametrize("detector", DETECTORS)
def test_the_initial_head_predicts_the_share_of_positives(small_cell, detector):
    config = small_cell(detector, "sampling_free", "dataset.extreme_source=masks")
    data, world = read_data(config), World(0, 1, torch.device("cpu"))
    model = build_detector(config, data.classes)
    before = {name: value.clone() for name, value in model.state_dict().items() if "running" in name}
    initialise_priors(model, training_batches(config, data, world, 0), world, channels_last=True)
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value), name
    for name, loss in model.classification.items():
        for layer in model.class_layers()[name]:
            torch.testing.assert_close(layer.bias.sigmoid(), torch.full_like(layer.bias, float(loss.prior)))
    if detector == "retinanet":
        # a manual count of positives and elements over the same twenty batches
        positives = elements = 0
        for step, batch in enumerate(training_batches(config, data, world, 0)):
            if step == 20:
                break
            with torch.no_grad():
                target, _ = model.assign(model(normalise(batch.images, True)), targets_of(batch))
            positives += int(target.num_positives())
            elements += int((~target.ignored).sum()) * data.train.num_classes
        assert float(model.classification["classification"].prior) == pytest.approx(
            positives / elements, rel=1e-6
        )
        adapt_threshold(model)
        assert model.score_threshold == pytest.approx(
            min(0.05, positives / elements * data.train.num_classes)
        )


@pytest.mark.parametrize("detector", ["retinanet", "fcos", "objectbox", "extremenet"])
def test_a_lower_score_threshold_of_the_loss_replaces_that_of_the_detector(small_cell, detector):
    model = build_detector(
        small_cell(detector, "sampling_free"), ClassCounts(torch.full((30,), 9.0), torch.full((30,), 9.0))
    )
    before = model.score_threshold
    for factor in (2.0, 0.25):
        for loss in model.classification.values():
            loss.prior.fill_(factor * before / loss.info.num_classes)
        adapt_threshold(model)
        assert model.score_threshold == pytest.approx(min(1.0, factor) * before)


@pytest.mark.parametrize("detector", ["centernet", "objectbox"])
@pytest.mark.parametrize(("loss", "prior"), [("eqlv2", 0.001), ("dr_loss", 0.5)])
def test_every_map_starts_at_the_prior_of_its_loss(small_cell, detector, loss, prior):
    config = small_cell(detector, loss)
    classes = ClassCounts(torch.full((30,), 9.0), torch.full((30,), 9.0))
    model = build_detector(config, classes)
    initialise_priors(model, iter([]), World(0, 1, torch.device("cpu")), channels_last=True)
    for layers in model.class_layers().values():
        for layer in layers:
            torch.testing.assert_close(layer.bias.sigmoid(), torch.full_like(layer.bias, prior))


def test_trained_class_layers_keep_their_biases(small_cell, tmp_path):
    config = small_cell("fcos", "eqlv2")
    data = read_data(config)
    classes, names = data.classes, data.statistics.names
    trained = build_detector(config, classes)
    (layer,) = trained.class_layers()["classification"]
    torch.nn.init.uniform_(layer.bias, -3, -1)
    torch.save({"model": trained.state_dict()}, tmp_path / "trained.pt")
    config.initial_weights = str(tmp_path / "trained.pt")
    world = World(0, 1, torch.device("cpu"))
    model = build_detector(config, classes)
    loaded, _ = start_from(config, model, world, lambda *_, **__: pytest.fail("trained"), names)
    initialise_priors(model, iter([]), world, channels_last=True, loaded=loaded)
    (own,) = model.class_layers()["classification"]
    assert torch.equal(own.bias, layer.bias)
    # A layer of another number of classes is fresh.
    other = ClassCounts(torch.ones(7), torch.ones(7))
    model = build_detector(config, other)
    loaded, _ = start_from(config, model, world, lambda *_, **__: pytest.fail("trained"), names)
    initialise_priors(model, iter([]), world, channels_last=True, loaded=loaded)
    (own,) = model.class_layers()["classification"]
    torch.testing.assert_close(own.bias.sigmoid(), torch.full_like(own.bias, 0.001))


def test_losses_without_a_prior_change_nothing(small_cell):
    config = small_cell("centernet", "fl")
    classes = ClassCounts(torch.ones(30), torch.ones(30))
    model = build_detector(config, classes)
    bias = model.heat[-1].bias.clone()
    initialise_priors(model, iter([]), World(0, 1, torch.device("cpu")), channels_last=True)
    assert torch.equal(model.heat[-1].bias, bias) and OmegaConf.is_dict(config)
