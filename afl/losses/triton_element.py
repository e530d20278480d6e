"""The equations of ``gradient`` for one element on a GPU, in float32; the fused kernels are built from them.

The notation is that of ``gradient``. Everything follows from e = exp(-|x|), so nothing cancels at either end. ln(1 + e) is a
polynomial, because a GPU's own logarithm loses the digits of a small e and a division is expensive. On an NVIDIA
GPU, reciprocals and exponentials are single instructions, right to a unit or two in the last place.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl

# How the kernels raise g to gamma: 0 and 2 are a constant and a product.
GAMMA_ZERO, GAMMA_TWO, GAMMA_ANY = (tl.constexpr(kind) for kind in range(3))
# Whether NVIDIA's instructions are available; Triton's interpreter does not have them.
_NVIDIA = tl.constexpr(torch.version.cuda is not None and os.environ.get("TRITON_INTERPRET", "0") != "1")
_LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
# A logit that stands for an element without a loss.
NEVER = tl.constexpr(-1e4)


@triton.jit
def reciprocal(x):
    """1 / x for x >= 1."""
    if _NVIDIA:
        result = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        result = 1.0 / x
    return result


@triton.jit
def bin_of(g, BINS: tl.constexpr):
    """Which of BINS equal bins of [0, 1] holds g; some bin for NaN."""
    return tl.maximum(tl.minimum((g * BINS).to(tl.int32), BINS - 1), 0)


@triton.jit
def _exp2(x):
    """2^x on an NVIDIA GPU; 0 below the smallest normal number."""
    return tl.inline_asm_elementwise(
        "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def _exp2_of_negative(x):
    """2^-|x| on an NVIDIA GPU, whose instruction takes the sign and the absolute value along."""
    return tl.inline_asm_elementwise(
        "{ .reg .f32 a; abs.f32 a, $1; neg.f32 a, a; ex2.approx.ftz.f32 $0, a; }",
        "=f,f",
        [x],
        dtype=tl.float32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def _exp_of_negative(x):
    """exp(-|x|); 0 below the smallest normal number."""
    if _NVIDIA:
        result = _exp2(tl.abs(x) * -_LOG2_E)
    else:
        result = tl.exp(-tl.abs(x))
    return result


@triton.jit
def _log1p(e):
    """ln(1 + e) for e in [0, 1]: e times a minimax polynomial of degree 9 with a relative error of 5e-9."""
    series = 0.019851453602313995 - 0.0032440043304326305 * e
    series = -0.05695951730012894 + e * series
    series = 0.10603653639554977 + e * series
    series = -0.15305592119693756 + e * series
    series = 0.1967593878507614 + e * series
    series = -0.24954134225845337 + e * series
    series = 0.3332996368408203 + e * series
    series = -0.4999990165233612 + e * series
    return e * (1.0 + e * series)


@triton.jit
def negative_terms(x, gamma, KIND: tl.constexpr):
    """g = sigmoid(x), g^gamma, gamma ln(2) (1 - g) and softplus(x) / ln(2), in as few instructions as possible.

    For x = ``NEVER`` g and softplus are exactly 0.
    """
    # Minus x in units of ln(2), which is what both exponentials want.
    y = x * -_LOG2_E
    if _NVIDIA:
        e = _exp2_of_negative(y)
        g = reciprocal(1.0 + _exp2(y))
    else:
        e = _exp_of_negative(x)
        large = 1.0 / (1.0 + e)
        g = tl.where(x >= 0, large, e * large)
    log2_1p = _log2_1p(e)
    if KIND == GAMMA_TWO:
        factor = g * g
        rest = 1.3862943611198906 - 1.3862943611198906 * g
    elif KIND == GAMMA_ZERO:
        factor = tl.full(x.shape, 1.0, tl.float32)
        rest = tl.zeros(x.shape, tl.float32)
    else:
        # log2(g) = -softplus(-x) / ln(2).
        factor = tl.exp2(gamma * (-tl.maximum(y, 0.0) - log2_1p))
        rest = gamma * LN_2 * (1.0 - g)
    return g, factor, rest, log2_1p - tl.minimum(y, 0.0)


@triton.jit
def _log2_1p(e):
    """log2(1 + e) for e in [0, 1]: e times a minimax polynomial of degree 7 with a relative error of 2e-7."""
    series = 0.06360789852426636 - 0.012319475524801102 * e
    series = -0.1553518799165171 + e * series
    series = 0.25600972202124966 + e * series
    series = -0.3533948283347584 + e * series
    series = 0.480063696591717 + e * series
    series = -0.7213100882199416 + e * series
    series = 1.4426947605259592 + e * series
    return e * series


@triton.jit
def hard_terms(x, gamma, KIND: tl.constexpr):
    """g = sigmoid(x), 1 - g, g^gamma and -ln(1 - g) = softplus(x)."""
    e = _exp_of_negative(x)
    large = reciprocal(1.0 + e)
    small = e * large
    g = tl.where(x >= 0, large, small)
    q = tl.where(x >= 0, small, large)
    log1p = _log1p(e)
    cross_entropy = tl.maximum(x, 0.0) + log1p
    if KIND == GAMMA_TWO:
        factor = g * g
    elif KIND == GAMMA_ZERO:
        factor = tl.full(x.shape, 1.0, tl.float32)
    else:
        # ln g = -softplus(-x).
        factor = tl.exp(gamma * (tl.minimum(x, 0.0) - log1p))
    return g, q, factor, cross_entropy


@triton.jit
def _power(b, gamma, KIND: tl.constexpr):
    """b^gamma for b >= 0."""
    if KIND == GAMMA_TWO:
        result = b * b
    elif KIND == GAMMA_ZERO:
        result = tl.full(b.shape, 1.0, tl.float32)
    else:
        result = tl.where(
            b > 0, tl.exp(gamma * tl.log(tl.where(b > 0, b, 1.0))), tl.where(gamma > 0, 0.0, 1.0)
        )
    return result


@triton.jit
def soft_terms(z, y, gamma, KIND: tl.constexpr, MIXTURE: tl.constexpr):
    """v and dv/dz for targets y in [0, 1], with the base b = |p - y|, or torchvision's mixture p (1 - y) + (1 - p) y.

    dv/dz = b^gamma (p - y) + gamma b^(gamma - 1) b' p (1 - p) BCE
    """
    p, q, _, _ = hard_terms(z, gamma, GAMMA_ZERO)
    cross_entropy = tl.maximum(z, 0.0) - y * z + _log1p(_exp_of_negative(z))
    difference = (1.0 - y) * p - y * q
    if MIXTURE:
        b = (1.0 - y) * p + y * q
        slope = 1.0 - 2.0 * y
    else:
        b = tl.abs(difference)
        slope = tl.where(difference > 0, 1.0, tl.where(difference < 0, -1.0, 0.0))
    factor = _power(b, gamma, KIND)
    # b^(gamma - 1) diverges at b = 0 for gamma < 1, but is multiplied by 0 there.
    if KIND == GAMMA_TWO:
        tail = 2.0 * b
    elif KIND == GAMMA_ZERO:
        tail = tl.zeros(b.shape, tl.float32)
    else:
        tail = gamma * factor / tl.maximum(b, 1.17549435e-38)
    return factor * cross_entropy, factor * difference + tail * slope * p * q * cross_entropy
