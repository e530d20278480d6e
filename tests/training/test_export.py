"""Exported networks, run by onnxruntime at several sizes and batches, compared with the same detectors in PyTorch."""

from __future__ import annotations

import json
import keyword
from pathlib import Path

import numpy as np
import pytest
import torch

from afl.export import ExportError, RawNetwork, check_onnx, export_onnx, require
from afl.predict import Predictor
from afl.training.build import build_detector
from afl.training.compose import compose_cell
from afl.training.detect import TestTime
from afl.training.inputs import normalise
from detectors.contract import ClassCounts

NAMES = ("tin", "net", "rope")


def fresh(detector: str, *overrides: str) -> Predictor:
    """A detector with random weights for three classes, and with losses that have tensors."""
    torch.manual_seed(0)
    config = compose_cell(
        detector=detector,
        loss="afl",
        overrides=["dataset=shapes_coco", "dataset.extreme_source=box_sides", *overrides],
    )
    model = build_detector(config, ClassCounts(torch.ones(3), torch.ones(3)))
    for parameter in model.parameters():  # including biases, so that a missing one is detected
        parameter.data += 0.02 * torch.randn_like(parameter)
    return Predictor(
        detector=model.eval(), config=config, names=NAMES, category_ids=(1, 2, 5), groups=("r", "c", "f"),
        checkpoint=Path("weights.pt"), step=0, device=torch.device("cpu"), test_time=TestTime(), batch_size=1,
    )  # fmt: skip


# Changes to a detector's config: some levels of RetinaNet are so coarse that a side has one location.
DETECTORS = {
    "cornernet": (),
    "centernet": (),
    "extremenet": (),
    "retinanet": ("pyramid.dense=[8,16,32,64,128]",),
    "fcos": (),
    "objectbox": (),
}


@pytest.mark.parametrize("detector", DETECTORS)
def test_onnxruntime_equals_pytorch_at_any_size_and_batch(detector, tmp_path, monkeypatch):
    # Fewer doubling steps are sufficient for these images, and the exporter needs time for each of them.
    monkeypatch.setattr("afl.export.LONGEST_WALK", 128)
    pytest.importorskip("onnxscript", reason="the extra packages of the export are not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    predictor = fresh(detector, *DETECTORS[detector])
    path = tmp_path / "network.onnx"
    names = export_onnx(predictor, path)
    assert max(check_onnx(predictor, path).values()) < 1e-3

    # Repeat this without the code under test: one image of another size.
    session = onnxruntime.InferenceSession(str(path))
    images = np.random.default_rng(1).integers(0, 256, (1, 3, 128, 224), dtype=np.uint8)
    found = dict(zip(names, session.run(names, {"images": images}), strict=True))
    with torch.no_grad():
        expected = predictor.detector(normalise(torch.from_numpy(images), channels_last=True))
    for name in names:
        np.testing.assert_allclose(found[name], expected[name].numpy(), atol=1e-3, rtol=1e-3)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == list(NAMES) and json.loads(about["outputs"]) == names


@pytest.mark.parametrize("detector", DETECTORS)
def test_no_tensor_of_the_network_is_named_after_a_python_keyword(detector):
    # The exporter writes the network as a Python program. This test does not need the exporter's packages.
    for name in RawNetwork(fresh(detector).detector).state_dict():
        assert not [part for part in name.split(".") if keyword.iskeyword(part)], name


def test_a_fixed_size_is_fixed_and_wrong_files_are_detected(tmp_path):
    pytest.importorskip("onnxscript", reason="the extra packages of the export are not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    predictor, path = fresh("centernet"), tmp_path / "network.onnx"
    export_onnx(predictor, path, size=(64, 96))
    assert max(check_onnx(predictor, path, size=(64, 96)).values()) < 1e-3
    assert onnxruntime.InferenceSession(str(path)).get_inputs()[0].shape[1:] == [3, 64, 96]
    predictor.detector.heat[-1].bias.data += 1
    with pytest.raises(ExportError, match="heat differs from PyTorch by 1"):
        check_onnx(predictor, path, size=(64, 96))


def test_bad_sizes_and_missing_packages_are_named_in_one_line(tmp_path):
    with pytest.raises(ExportError, match="^no_such_package is not installed: .*--extra export$"):
        require("json", "no_such_package")
    with pytest.raises(ExportError, match="^no_such_package, nor_this are not installed: "):
        require("no_such_package", "nor_this")
    pytest.importorskip("onnxscript", reason="the extra packages of the export are not installed")
    with pytest.raises(ValueError, match="multiples of 32"):
        export_onnx(fresh("centernet"), tmp_path / "x.onnx", size=(100, 96))
    assert not (tmp_path / "x.onnx").exists()
