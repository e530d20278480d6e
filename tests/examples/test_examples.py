"""The examples run: their losses decrease on fixed images, the new loss and detector follow the contracts, and the notebook's
outputs come from its code."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient

from afl.losses import ClassificationLoss
from detectors.views import score_maps
from examples import new_detector, new_loss, torchvision_retinanet_afl
from examples.scenes import SCENES, scenes, train

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def two_scenes(tmp_path_factory) -> Path:
    """A COCO file of two images, so that every step sees the same batch."""
    content = json.loads((SCENES / "annotations.json").read_text())
    content["images"] = content["images"][:2]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] in kept]
    path = tmp_path_factory.mktemp("scenes") / "two.json"
    path.write_text(json.dumps(content))
    return path


def detector_of(classes, loss):
    return new_detector.CentreCell(backbone=new_detector.TinyBackbone(), classes=classes, loss=loss)


def test_retinanet_of_torchvision_trains_with_adaptive_focal_loss(two_scenes, capsys):
    losses = torchvision_retinanet_afl.main(two_scenes, SCENES, steps=14, batch=2, image_size=64)
    assert len(losses) == 14 and losses[-1] < 0.9 * losses[0]
    kappas = [float(value) for value in re.findall(r"kappa (\d\.\d+)", capsys.readouterr().out)]
    assert kappas[0] == 1.0 and kappas[-1] < 1.0


def test_the_new_loss_only_weights_positives():
    losses = new_loss.main(steps=8)
    assert losses[-1] < 0.8 * losses[0]
    images, targets, classes = scenes(4)
    plain, weighted = (
        detector_of(classes, loss)
        for loss in (
            ClassificationLoss,
            partial(ClassificationLoss, chain={"sqrt_frequency": new_loss.SquareRootFrequency}),
        )
    )
    weighted.load_state_dict(plain.state_dict(), strict=False)
    gradients = []
    for detector in (plain.eval(), weighted.eval()):
        outputs = detector(images)
        outputs["logits"] = outputs["logits"].detach().requires_grad_()
        detector.losses(outputs, targets)["classification"].backward()
        gradients.append(outputs["logits"].grad)
    ratio = (gradients[1] / gradients[0]).flatten(0, 1)
    positive = gradients[0].flatten(0, 1) < 0
    expected = (classes.instances.max() / classes.instances.clamp(min=1)).sqrt().expand_as(ratio)
    torch.testing.assert_close(ratio[positive], expected[positive], rtol=1e-4, atol=0)
    torch.testing.assert_close(ratio[~positive], torch.ones_like(ratio[~positive]), rtol=1e-4, atol=0)


def test_the_new_detector_decodes_its_targets():
    """Outputs that are derived from the ground truth are decoded to the ground truth."""
    images, targets, classes = scenes(4)
    detector = detector_of(classes, ClassificationLoss).eval()
    outputs = detector(images)
    logits, distances = torch.full_like(outputs["logits"], -9.0), torch.zeros_like(outputs["distances"])
    side = images.shape[-1] // detector.stride
    expected = []
    for b, (boxes, labels) in enumerate(zip(targets.boxes, targets.labels, strict=True)):
        cells = {}
        for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
            if label >= 0:
                column, row = ((box[i] + box[i + 2]) / 2 // detector.stride for i in (0, 1))
                cells[int(row * side + column)] = (box, label)
        for cell, (box, label) in cells.items():
            x, y = outputs["points"][cell].tolist()
            logits[b, cell, label] = 9.0
            distances[b, cell] = (
                torch.tensor([x - box[0], y - box[1], box[2] - x, box[3] - y]) / detector.stride
            )
        expected.append(cells)
    found = detector.decode({**outputs, "logits": logits, "distances": distances}, targets.image_sizes)
    for one, cells in zip(found, expected, strict=True):
        assert sorted(one.labels.tolist()) == sorted(label for _, label in cells.values())
        wanted = torch.tensor(sorted(box for box, _ in cells.values()))
        torch.testing.assert_close(torch.tensor(sorted(one.boxes.tolist())), wanted, atol=1e-3, rtol=0)
    loss = detector.losses({**outputs, "logits": logits, "distances": distances}, targets)
    assert loss["box"].item() < 0.2  # of two objects that share a cell, only one can be right


def test_score_maps_of_the_new_detector_have_its_grid():
    images, _, classes = scenes(2)
    detector = detector_of(classes, ClassificationLoss).eval()
    outputs = detector(images)
    (drawn,) = score_maps(detector, outputs, *images.shape[-2:]).values()
    best = outputs["logits"][0].sigmoid().amax(-1)
    assert drawn.shape == (12, 12) and torch.equal(drawn.flatten(), best)


def test_the_new_detector_learns_with_every_kind_of_loss():
    images, targets, classes = scenes(4)
    from afl.losses import OnlineHardExampleMining

    for chain in ({}, {"ohem": OnlineHardExampleMining}):
        torch.manual_seed(0)
        detector = detector_of(classes, partial(ClassificationLoss, chain=chain))
        losses = train(detector, images, targets, 12)
        assert losses[-1] < 0.8 * losses[0]


def test_the_notebook_runs_and_contains_the_outputs_of_its_code():
    path = ROOT / "examples" / "afl_in_your_loop.ipynb"
    kept = nbformat.read(path, as_version=4)
    run = nbformat.read(path, as_version=4)
    NotebookClient(run, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    for before, after in zip(kept.cells, run.cells, strict=True):
        if before.cell_type == "code":
            assert outputs(before) == outputs(after), before.source


def outputs(cell) -> list:
    """Printed text as it is, but scores of the detector, which depend on the processor, and pictures as their kinds."""
    exact = "predictor" not in cell.source
    return [
        out.get("text") if exact and "text" in out else (out.output_type, sorted(out.get("data", {})))
        for out in cell.outputs
    ]
