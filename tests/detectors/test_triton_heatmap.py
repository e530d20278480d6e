"""The kernel of Gaussian targets in Triton's interpreter, compared with torch's operations; and its compilation for a GPU."""

import pytest
import torch

from detectors.heatmap import gaussian_lists
from detectors.triton_heatmap import gaussian_lists as lists_of_kernel
from tests.fresh_python import run_without_interpreter


def crowded_scene(seed: int, maps: int, batch: int, count: int, classes: int, side: tuple[int, int]):
    """Many objects of few classes, some of them in the same cell with the same radius."""
    generator = torch.Generator().manual_seed(seed)
    height, width = side
    cells = torch.stack(
        [
            torch.randint(width, (maps, batch, count), generator=generator),
            torch.randint(height, (maps, batch, count), generator=generator),
        ],
        -1,
    )
    radius = torch.randint(4, (batch, count), generator=generator).float()
    labels = torch.randint(classes, (batch, count), generator=generator)
    twins = count // 3
    cells[:, :, :twins], radius[:, :twins], labels[:, :twins] = (
        cells[:, :, twins : 2 * twins],
        radius[:, twins : 2 * twins],
        labels[:, twins : 2 * twins],
    )
    return cells, radius, labels, torch.rand(batch, count, generator=generator) < 0.8


@pytest.mark.parametrize("block", [32, 4096])
@pytest.mark.parametrize("seed", range(2))
def test_kernel_lists_the_same_elements_as_torch(monkeypatch, seed, block):
    monkeypatch.setattr("detectors.triton_heatmap._BLOCK_INTERPRETED", block)
    scene = crowded_scene(seed, maps=2, batch=2, count=7, classes=2, side=(11, 14))
    expected = gaussian_lists(*scene, 2, 11, 14)
    for (peak, slope, scale), (positive, index, factor) in zip(
        expected, lists_of_kernel(*scene, 5, 2, 11, 14), strict=True
    ):
        assert sorted(positive[positive >= 0].tolist()) == peak.tolist()
        found, order = index[index >= 0].sort()
        assert torch.equal(found, slope)
        torch.testing.assert_close(factor[index >= 0][order], scale, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("count", [0, 3])
def test_kernel_works_without_objects(count):
    nothing = torch.zeros(2, count, dtype=torch.bool)
    lists = lists_of_kernel(
        torch.zeros(3, 2, count, 2, dtype=torch.int64),
        torch.zeros(2, count),
        nothing.long(),
        nothing,
        2,
        4,
        8,
        8,
    )
    assert len(lists) == 3
    assert all((positive == -1).all() and (index == -1).all() for positive, index, _ in lists)


BUILD = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from detectors import triton_heatmap

kernel = triton_heatmap._draw
types = dict(cells="*i64", radius="*fp32", labels="*i64", present="*u8", positive="*i64", index="*i64", scale="*fp32")
names = kernel.arg_names
signature = {name: "constexpr" if name == "BLOCK" else types.get(name, "i32") for name in names}
source = ASTSource(kernel, signature, {(names.index("BLOCK"),): 256})
for capability in (80, 90):
    assert compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]
    print("built", capability)
"""


def test_kernel_compiles_for_a_gpu_without_one(tmp_path):
    done = run_without_interpreter(BUILD, TRITON_CACHE_DIR=str(tmp_path))
    assert done.stdout.count("built") == 2, done.stderr[-2000:]
