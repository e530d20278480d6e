"""The compiled forward pass compared with the detector's, and the number of compilations."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from afl.training.build import build_detector
from afl.training.compiled import wants_compiled
from afl.training.compose import compose_cell
from detectors.contract import ClassCounts

DETECTORS = ("cornernet", "centernet", "extremenet", "retinanet", "fcos", "objectbox")


@pytest.mark.parametrize("name", DETECTORS)
def test_the_forward_pass_is_one_graph_compiled_once_per_shape(name):
    config = compose_cell(detector=name, loss="fl", overrides=["dataset=shapes_coco"])
    detector = build_detector(config, ClassCounts(torch.ones(5), torch.ones(5))).eval()
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(detector, backend=counter, dynamic=False, fullgraph=True)
    for size in (32, 64, 32, 64, 32):
        images = torch.randn(1, 3, size, size)
        torch.testing.assert_close(compiled(images), detector(images))
    assert counter.frame_count == 2


def test_auto_compiles_only_on_a_gpu():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [wants_compiled("auto", device) for device in (cpu, gpu)] == [False, True]
    assert wants_compiled(True, cpu) and not wants_compiled(False, gpu)
