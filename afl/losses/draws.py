"""Pseudo-random numbers that depend on a position and a step alone, so that every process and every resumed run draws the same."""

from __future__ import annotations

import torch
from torch import Tensor


def uniform(position: Tensor, step: Tensor) -> Tensor:
    """A pseudo-random number in [0, 1) for each position and step, float32.

    Args:
        position: int64 below 2^32, any shape.
        step: int64 scalar.
    """
    number = _scrambled(position ^ _scrambled(step + 1))
    return (number >> 8).to(torch.float32) * 2.0**-24


def _scrambled(x: Tensor) -> Tensor:
    """A bijection of 32-bit numbers that carries every bit into all others."""
    for _ in range(2):
        # The factor has 27 bits: no product leaves int64.
        x = ((x >> 16) ^ x) * 0x45D9F3B & 0xFFFFFFFF
    return (x >> 16) ^ x
