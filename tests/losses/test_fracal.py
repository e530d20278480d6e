"""Logits of fractal calibration compared with the product of two sigmoids in double precision, up to +-80 and in every type."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from afl.losses import FractalCalibration
from tests.losses.cases import make_info

COUNTS, DIMENSIONS = [900.0, 90.0, 9.0, 0.0], torch.tensor([2.0, 1.5, 1.0, 1.0])
INFO = replace(make_info(COUNTS), fractal_dimension=lambda: DIMENSIONS)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2**-8)]
)
def test_logits_are_those_of_the_product_up_to_80(dtype, tolerance):
    """ln p - ln(1 - p) with p = 1 / ((1 + e^-z)(1 + e^-(z + s))) is -ln(e^-z + e^-(z + s) + e^-(2 z + s))."""
    n, spread = torch.tensor([900.0, 90.0, 9.0, 1.0]).double(), DIMENSIONS.double() ** 2
    shift = -(4 * n / n.sum()).log10() - (4 * spread / spread.sum()).log10()
    z = torch.tensor([-80.0, -20.0, -3.0, 0.0, 0.5, 4.0, 20.0, 80.0]).to(dtype)
    maps = z.expand(1, 2 * 4, 1, -1).clone()  # two anchors of four classes
    found = FractalCalibration(INFO).rescoring(maps)
    assert found.dtype == dtype and found.isfinite().all()
    for channel in range(8):
        s, own = shift[channel % 4], z.double()
        expected = -torch.logsumexp(torch.stack([-own, -own - s, -2 * own - s]), 0)
        torch.testing.assert_close(
            found[0, channel, 0].double(), expected, rtol=tolerance, atol=10 * tolerance
        )


def test_a_power_of_zero_leaves_the_frequencies_alone():
    z = torch.tensor([0.5, -1.0, 2.0, -3.0], dtype=torch.float64).view(1, 4, 1, 1)
    share = torch.tensor([900.0, 90.0, 9.0, 1.0], dtype=torch.float64) / 1000
    expected = z.sigmoid() * (z - (4 * share).log10().view(1, 4, 1, 1)).sigmoid()
    found = FractalCalibration(INFO, power=0.0).rescoring(z).sigmoid()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_one_class_is_not_changed_and_a_negative_power_is_rejected():
    assert FractalCalibration(make_info([5.0])).rescoring is None
    with pytest.raises(ValueError, match="power is -1"):
        FractalCalibration(INFO, power=-1.0)
