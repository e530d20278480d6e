"""The kernels that match anchors in Triton's interpreter, compared with torch's operations; and their compilation for a GPU."""

import pytest
import torch

from detectors.anchors import match_anchors
from tests.detectors.test_matching_memory import scene
from tests.fresh_python import run_without_interpreter


@pytest.mark.parametrize("block", [256, 1 << 14])
@pytest.mark.parametrize("count", [0, 1, 9])
def test_kernel_matches_are_bit_identical_to_torch(monkeypatch, count, block):
    anchors, boxes, valid = scene(count, side=8)
    monkeypatch.setenv("AFL_TRITON", "off")
    expected = match_anchors(anchors, boxes, valid)
    monkeypatch.setenv("AFL_TRITON", "on")
    monkeypatch.setattr("detectors.triton_matching._BLOCK_INTERPRETED", block)
    match, overlap = match_anchors(anchors, boxes, valid)
    assert torch.equal(match, expected[0])
    assert torch.equal(overlap, expected[1])


BUILD = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from detectors import triton_matching

types = dict(anchors="*fp32", boxes="*fp32", valid="*u8", best="*fp32", match="*i64", top="*fp32", low="fp32", high="fp32")
fixed = dict(BLOCK=256)
for kernel in (triton_matching._best, triton_matching._decide):
    names = kernel.arg_names
    signature = {name: "constexpr" if name in fixed else types.get(name, "i32") for name in names}
    constants = {(names.index(name),): value for name, value in fixed.items() if name in names}
    for capability in (80, 90):
        target = GPUTarget("cuda", capability, 32)
        built = compile(ASTSource(kernel, signature, constants), target=target, options={"enable_fp_fusion": False})
        assert built.asm["cubin"]
        print("built", capability)
"""


def test_kernels_compile_for_a_gpu_without_one(tmp_path):
    done = run_without_interpreter(BUILD, TRITON_CACHE_DIR=str(tmp_path))
    assert done.stdout.count("built") == 4, done.stderr[-2000:]
