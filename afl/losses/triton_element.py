"""The equations of ``gradient`` for one element on a GPU, in float32; what the fused kernels are made of.

Same notation and same care as there: everything comes from e = exp(-|x|), so that nothing cancels at either
end. ln(1 + e) is a series, because a GPU's own logarithm loses the digits of a small e.
"""

from __future__ import annotations

import triton
import triton.language as tl

# How the kernels raise g to gamma: 0 and 2 are a constant and a product.
GAMMA_ZERO, GAMMA_TWO, GAMMA_ANY = (tl.constexpr(kind) for kind in range(3))


@triton.jit
def _log1p(e):
    """ln(1 + e) for e in [0, 1], as 2 artanh(e / (2 + e)); the next term is below 2e-8."""
    s = e / (2.0 + e)
    t = s * s
    series = 1.0 / 11.0 + t * (1.0 / 13.0)
    series = 1.0 / 9.0 + t * series
    series = 1.0 / 7.0 + t * series
    series = 1.0 / 5.0 + t * series
    series = 1.0 / 3.0 + t * series
    return 2.0 * s * (1.0 + t * series)


@triton.jit
def hard_terms(x, gamma, KIND: tl.constexpr):
    """g = sigmoid(x), 1 - g, g^gamma and -ln(1 - g) = softplus(x)."""
    e = tl.exp(-tl.abs(x))
    large = 1.0 / (1.0 + e)
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
        # ln g = -softplus(-x) is at hand.
        factor = tl.exp(gamma * (tl.minimum(x, 0.0) - log1p))
    return g, q, factor, cross_entropy


@triton.jit
def _power(b, gamma, KIND: tl.constexpr):
    """b^gamma for b >= 0 of any origin."""
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
    cross_entropy = tl.maximum(z, 0.0) - y * z + _log1p(tl.exp(-tl.abs(z)))
    difference = (1.0 - y) * p - y * q
    if MIXTURE:
        b = (1.0 - y) * p + y * q
        slope = 1.0 - 2.0 * y
    else:
        b = tl.abs(difference)
        slope = tl.where(difference > 0, 1.0, tl.where(difference < 0, -1.0, 0.0))
    factor = _power(b, gamma, KIND)
    # b^(gamma - 1) diverges at b = 0 for gamma < 1, where what it multiplies is 0.
    if KIND == GAMMA_TWO:
        tail = 2.0 * b
    elif KIND == GAMMA_ZERO:
        tail = tl.zeros(b.shape, tl.float32)
    else:
        tail = gamma * factor / tl.maximum(b, 1.17549435e-38)
    return factor * cross_entropy, factor * difference + tail * slope * p * q * cross_entropy
