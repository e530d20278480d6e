"""Corner pooling compared with its definition (a loop over cells) and with finite differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from detectors.corner_pooling import (
    WALKS,
    CornerPooling,
    bottom_pool,
    left_pool,
    pool_by_doubling,
    right_pool,
    top_pool,
)

# Each pool with the cells of its maximum, relative to (row, column).
POOLS = {
    top_pool: lambda x, i, j: x[i:, j],
    left_pool: lambda x, i, j: x[i, j:],
    bottom_pool: lambda x, i, j: x[: i + 1, j],
    right_pool: lambda x, i, j: x[i, : j + 1],
}


@pytest.mark.parametrize("pool", POOLS, ids=lambda pool: pool.__name__)
@pytest.mark.parametrize("channels_last", [False, True])
def test_pool_equals_the_maximum_over_its_cells(pool, channels_last):
    x = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    expected = torch.empty_like(x)
    for b in range(2):
        for c in range(3):
            for i in range(5):
                for j in range(7):
                    expected[b, c, i, j] = POOLS[pool](x[b, c], i, j).max()
    assert torch.equal(pool(x), expected)


@pytest.mark.parametrize("pool", WALKS)
@pytest.mark.parametrize("shape", [(1, 2, 1, 1), (2, 3, 5, 8), (1, 1, 17, 3)])
def test_pool_by_doubling_equals_the_running_maximum(pool, shape):
    x = torch.randn(shape)
    assert torch.equal(pool_by_doubling(x, *WALKS[pool], longest=32), pool(x))


def test_left_pool_of_a_row_equals_the_papers_walk():
    assert left_pool(torch.tensor([[2.0, 1, 3, 0, 2]])).tolist() == [[3, 3, 3, 2, 2]]


@pytest.mark.parametrize("pool", POOLS, ids=lambda pool: pool.__name__)
def test_gradient_equals_finite_differences(pool):
    # A permutation: all values differ by at least 0.1, far more than the step of the differences.
    x = torch.randperm(2 * 4 * 5, generator=torch.Generator().manual_seed(1)).double().view(1, 2, 4, 5) / 10
    assert gradcheck(pool, (x.requires_grad_(),))


@pytest.mark.parametrize("pool", POOLS, ids=lambda pool: pool.__name__)
def test_gradients_of_a_long_walk_are_summed_in_float32(pool):
    # One large value in the middle receives the gradients of at least 150 cells; in bfloat16, 256 + 1 is 256.
    x = torch.zeros(1, 1, 301, 301, dtype=torch.bfloat16)
    x[0, 0, 150, 150] = 1.0
    found = pool(x.requires_grad_())
    upstream = torch.ones_like(found)
    upstream[0, 0, 150, 150] = 256.0
    found.backward(upstream)
    assert x.grad.dtype == torch.bfloat16
    assert x.grad[0, 0, 150, 150].item() == 406.0


@pytest.mark.parametrize("corner", ["top_left", "bottom_right"])
def test_a_corner_depends_only_on_cells_in_its_directions(corner):
    # In evaluation mode batch norm is the identity. The convolutions have a receptive field of 5x5 cells.
    torch.manual_seed(0)
    block = CornerPooling(channels=4, corner=corner).eval()
    # Change row 10, column 14 of a map.
    base = torch.randn(1, 4, 24, 24)
    changed = base.clone()
    changed[0, :, 10, 14] += 50.0
    seen = (block(changed) - block(base)).abs().sum(1)[0] > 0
    towards = -1 if corner == "top_left" else 1
    far_along_column = seen[10 + towards * 8, 14]
    far_along_row = seen[10, 14 + towards * 8]
    assert far_along_column and far_along_row
    assert not seen[10 - towards * 8, 14] and not seen[10, 14 - towards * 8]
    assert not seen[10 + towards * 8, 14 + towards * 8]


@pytest.mark.parametrize(
    ("corner", "pools"), [("top_left", (top_pool, left_pool)), ("bottom_right", (bottom_pool, right_pool))]
)
def test_the_block_equals_figure_7_with_a_convolution_for_each_direction(corner, pools):
    generator = torch.Generator().manual_seed(3)
    block = CornerPooling(channels=4, corner=corner).double().eval()
    for value in block.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.2, 1.0, generator=generator)

    def convolved(module, x, part=slice(None)):
        convolution, norm = module
        x = F.conv2d(x, convolution.weight[part], padding=convolution.padding)
        statistics = (norm.running_mean[part], norm.running_var[part], norm.weight[part], norm.bias[part])
        return F.batch_norm(x, *statistics, eps=norm.eps)

    x = torch.randn(2, 4, 6, 7, generator=generator, dtype=torch.float64) - 0.5
    first = pools[0](F.relu(convolved(block.directions[0], x, slice(0, 2))))
    second = pools[1](F.relu(convolved(block.directions[0], x, slice(2, 4))))
    merged = F.relu(convolved(block.merge, first + second) + convolved(block.shortcut, x))
    assert torch.allclose(block(x), F.relu(convolved(block.output[0], merged)), rtol=1e-12)
    assert (merged == 0).any() and (merged > 0).any()  # so the inner ReLU matters


def test_unknown_corner_is_rejected():
    with pytest.raises(ValueError, match="top_left, bottom_right"):
        CornerPooling(channels=4, corner="top_right")
