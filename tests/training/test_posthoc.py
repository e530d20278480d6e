"""Post-hoc remedies on all six detectors compared with manually changed scores; training after an evaluation is not affected.
Predictions and score maps of such a run are those of its evaluation."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from afl.losses import PostHocAdjustment, TauNormalization
from afl.predict import load_predictor
from afl.training import run_cell
from afl.training.build import build_detector
from afl.training.compose import compose_cell
from afl.training.data import read_data
from afl.training.evaluation import evaluated
from detectors.contract import ClassCounts
from tests.losses.cases import make_info

COUNTS, IMAGES = torch.tensor([[900.0, 300.0, 30.0, 3.0], [400.0, 250.0, 20.0, 3.0]])
DIMENSIONS = torch.tensor([2.0, 1.7, 1.2, 1.0])
# For every map with classes: the output, and the position of its classes.
LOGITS = {
    "centernet": {"heat": 1},
    "cornernet": {"top_left": 1, "bottom_right": 1},
    "extremenet": {"top": 1, "left": 1, "bottom": 1, "right": 1, "center": 1},
    "retinanet": {"logits": 2},
    "fcos": {"logits": 2},
    "objectbox": {"classes": 2},
}
OTHERS = {"objectbox": "objectness"}


def build(detector: str, loss: str):
    config = compose_cell(detector=detector, loss=loss, overrides=["dataset=shapes_coco"])
    torch.manual_seed(0)
    return build_detector(config, ClassCounts(COUNTS, IMAGES, lambda: DIMENSIONS)).eval()


@torch.no_grad()
def outputs(model) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return model(torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize(
    ("loss", "tau", "counts"), [("posthoc_adjustment", 1.0, COUNTS), ("norcal", 0.6, IMAGES)]
)
@pytest.mark.parametrize("detector", LOGITS)
def test_adjustment_adds_the_log_of_the_relative_count_to_logits_and_is_undone(detector, loss, tau, counts):
    model = build(detector, loss)
    before = outputs(model)
    with evaluated(model, None):
        found = outputs(model)
    for name, axis in LOGITS[detector].items():
        shape = [-1 if k == axis else 1 for k in range(before[name].ndim)]
        expected = before[name] - tau * (counts / counts.max()).log().view(shape)
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-5)
    if detector in OTHERS:
        assert torch.equal(found[OTHERS[detector]], before[OTHERS[detector]])
    assert all(torch.equal(value, before[name]) for name, value in outputs(model).items())


@pytest.mark.parametrize("detector", LOGITS)
def test_tau_normalisation_shrinks_differences_of_length_and_keeps_direction_bias_and_mean(detector):
    model = build(detector, "tau_norm")
    for layers in model.class_layers().values():
        for layer in layers:
            layer.weight.data *= 1 + torch.arange(len(layer.weight)).view(-1, 1, 1, 1)
    own = {name: [copy.deepcopy(layer) for layer in layers] for name, layers in model.class_layers().items()}
    with evaluated(model, 500):
        assert model.max_detections == 500
        for name, layers in model.class_layers().items():
            for layer, before in zip(layers, own[name], strict=True):
                assert torch.equal(layer.bias, before.bias)
                one, other = (each.weight.flatten(1).double() for each in (before, layer))
                if name == OTHERS.get(detector):
                    assert torch.equal(one, other)
                    continue
                lengths, found = one.norm(dim=1).log(), other.norm(dim=1).log()
                torch.testing.assert_close(
                    found, lengths.mean() + 0.3 * (lengths - lengths.mean()), rtol=0, atol=1e-5
                )
                torch.testing.assert_close(
                    other / other.norm(dim=1, keepdim=True), one / one.norm(dim=1, keepdim=True)
                )
    assert model.max_detections == 100
    for name, layers in model.class_layers().items():
        assert all(
            torch.equal(layer.weight, before.weight) for layer, before in zip(layers, own[name], strict=True)
        )


@pytest.mark.parametrize("detector", LOGITS)
def test_fractal_calibration_multiplies_scores_by_a_second_sigmoid_and_is_undone(detector):
    """With four classes and shifts in base 10, as in the official code, scores of rare classes and of classes in one place rise."""
    model = build(detector, "fracal")
    before = outputs(model)
    with evaluated(model, None):
        found = outputs(model)
    n, spread = COUNTS.double() / COUNTS.sum(), DIMENSIONS.double() ** 2
    shift = -(n / 0.25).log10() - (spread / spread.sum() / 0.25).log10()
    assert shift[3] > 2 and shift[0] < 0
    for name, axis in LOGITS[detector].items():
        shape = [-1 if k == axis else 1 for k in range(before[name].ndim)]
        z = before[name].double()
        expected = z.sigmoid() * (z + shift.view(shape)).sigmoid()
        torch.testing.assert_close(found[name].double().sigmoid(), expected, rtol=1e-5, atol=1e-9)
    if detector in OTHERS:
        assert torch.equal(found[OTHERS[detector]], before[OTHERS[detector]])
    assert all(torch.equal(value, before[name]) for name, value in outputs(model).items())


def test_a_strength_of_zero_keeps_the_class_layer_and_of_one_makes_its_vectors_equally_long():
    info = make_info([900.0, 30.0, 3.0])
    weight, bias = torch.randn(6, 4, 1, 1) * torch.arange(1.0, 7.0).view(-1, 1, 1, 1), torch.randn(6)
    for link in (PostHocAdjustment(info, tau=0.0), TauNormalization(info, tau=0.0)):
        same_weight, same_bias = link.calibrated(weight, bias)
        assert torch.equal(same_weight, weight) and torch.equal(same_bias, bias)
    lengths = TauNormalization(info, tau=1.0).calibrated(weight, bias)[0].flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, lengths[0].expand(6))


@pytest.mark.parametrize("link", [PostHocAdjustment, TauNormalization])
def test_a_map_of_one_class_does_not_change(link):
    """A detector with anchors has several vectors for its one class."""
    weight, bias = torch.randn(9, 4, 1, 1), torch.randn(9)
    found = link(make_info([5.0])).calibrated(weight, bias)
    assert torch.equal(found[0], weight) and torch.equal(found[1], bias)


def test_fractal_calibration_without_a_data_set_gives_one_line():
    config = compose_cell(detector="fcos", loss="fracal", overrides=["dataset=shapes_coco"])
    model = build_detector(config, ClassCounts(COUNTS, IMAGES))
    with (
        pytest.raises(ValueError, match="fracal needs to know where the training objects"),
        evaluated(model, None),
    ):
        pass


@pytest.mark.parametrize("loss", ["norcal", "fracal"])
def test_predictions_and_score_maps_of_a_run_are_those_of_its_evaluation(small_cell, monkeypatch, loss):
    from scripts.report import main
    from scripts.reports import heads

    config = small_cell(
        "fcos",
        loss,
        "trainer.precision=fp32",
        "trainer.max_duration=3steps",
        "detector.score_threshold=1e-6",
    )
    folder = Path(config.paths.output) / run_cell(config).key
    val = read_data(config).val
    predictor = load_predictor(folder)
    found = predictor([val.image_path(i) for i in range(len(val))], score=0)
    kept = sorted(one["score"] for one in json.loads((folder / "detections.json").read_text()))
    ours = sorted(score for one in found for score in one.scores.tolist())
    assert kept
    np.testing.assert_allclose(ours, kept, rtol=1e-4)

    drawn = {}
    draw = heads.draw_maps
    monkeypatch.setattr(
        heads, "draw_maps", lambda shown, maps, names: drawn.update(maps) or draw(shown, maps, names)
    )
    main(["heads", f"run={folder}"])
    expected = predictor.score_maps(val.image_path(0))
    assert drawn.keys() == expected.keys()
    for name, scores in expected.items():
        np.testing.assert_allclose(drawn[name], scores, rtol=1e-4)
