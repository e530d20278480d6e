"""The equations of the focal family, each in one place, always from logits.

Notation: z logit, p = sigmoid(z), y target, g = |p - y| the size of the gradient of cross-entropy, gamma the
focusing exponent. For a hard target, with x = z where y = 0 and x = -z where y = 1,

    g = sigmoid(x),    -ln(1 - g) = softplus(x),    v = g^gamma softplus(x)

so one set of formulas serves both signs, and none of them loses digits at either end: nothing is clamped, and
the gradient is accurate at any logit. Class weights, alpha and the heat map's scale of negatives multiply
v. Soft targets have a separate formula, equal to this one at y = 0 and y = 1.

The functions take ``out`` so that the blocked pass over all negatives works in place.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Above this logit softplus(x) = x to double precision.
_LINEAR = 40.0
# Up to this logit -ln(1 - g) from a rounded g is right to 3e-7, as good as softplus's own 1e-7 for all purposes.
MODERATE = 1.0


def computing_type(dtype: torch.dtype) -> torch.dtype:
    """Type in which a loss on logits of ``dtype`` is computed: float32, except that float64 stays float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def negative_log(x: Tensor, out: Tensor | None = None) -> Tensor:
    """-ln(1 - g) for g = sigmoid(x): the cross-entropy of a hard target, any shape."""
    return F.softplus(x, 1.0, _LINEAR) if out is None else F.softplus(x, 1.0, _LINEAR, out=out)


def negative_log_block(x: Tensor, g: Tensor, largest: float, out: Tensor) -> Tensor:
    """``negative_log`` of a block with known g = sigmoid(x), into ``out``; twice as fast on a CPU for moderate x.

    -ln(1 - g) computed from g keeps its digits as long as 1 - g is not small. The largest x is nearly always far below 1.
    """
    if largest <= MODERATE:
        return torch.log1p(torch.neg(g, out=out), out=out).neg_()
    return negative_log(x, out=out)


def modulation(g: Tensor, gamma: float | Tensor, out: Tensor | None = None) -> Tensor:
    """g^gamma, the focal factor (Lin et al. 2017, eq. 4); gamma a number or a tensor that broadcasts."""
    if isinstance(gamma, Tensor):
        return torch.pow(g, gamma, out=out)
    if gamma == 2.0:
        return torch.mul(g, g, out=out)
    if gamma == 0.0:
        return torch.ones_like(g) if out is None else out.fill_(1.0)
    return torch.pow(g, gamma, out=out)


def gradient_size(
    g: Tensor, factor: Tensor, loss: Tensor, gamma: float | Tensor, out: Tensor | None = None
) -> Tensor:
    """|dv/dz| = G_gamma(g) = g^gamma [g + gamma (1 - g)(-ln(1 - g))], times the weight in ``factor``.

    Args:
        g: size of the gradient of cross-entropy, any shape.
        factor: w g^gamma for any weight w.
        loss: w v, that is ``factor`` times -ln(1 - g).
        gamma: a number or a tensor that broadcasts.

    Returns:
        w G_gamma(g) = g factor + (1 - g) gamma loss, of g's shape.
    """
    return torch.lerp(torch.mul(loss, gamma, out=out), factor, g, out=out)


def focal_gradient(x: Tensor, gamma: float | Tensor) -> Tensor:
    """G_gamma(sigmoid(x)): the size of focal loss's gradient, alpha_t apart; below 1.13 for gamma 2."""
    g = torch.sigmoid(x)
    factor = modulation(g, gamma)
    return gradient_size(g, factor, factor * negative_log(x), gamma)


def gate(u: Tensor, strength: float | Tensor, out: Tensor | None = None) -> Tensor:
    """The Adaptive Gradient Function's gate A = 1 / (1 + strength u), in (0, 1]; see docs/losses.md.

    Args:
        u: size of the weighted gradient without alpha_t, W G_gamma(g), any shape.
        strength: kappa / tau, 0 switches the gate off.
    """
    return inverse_gate(u, strength, out=out).reciprocal_()


def inverse_gate(
    u: Tensor, strength: float | Tensor, scale: float | Tensor = 1.0, out: Tensor | None = None
) -> Tensor:
    """1 / (scale A): what to divide by, to apply the gate A of ``gate`` and multiply by ``scale`` at the same time."""
    if isinstance(strength, Tensor) or isinstance(scale, Tensor):
        return torch.mul(u, strength / scale, out=out).add_(1.0 / scale)
    return torch.add(u.new_full((), 1.0 / scale), u, alpha=strength / scale, out=out)


def gate_of_gated(gated: Tensor, strength: float | Tensor) -> Tensor:
    """The same gate, from the gated gradient's size A u: A = 1 - strength A u."""
    return (1.0 - strength * gated).clamp(0.0, 1.0)


def alpha_balance(y: float | Tensor, alpha: float) -> float | Tensor:
    """alpha_t = alpha y + (1 - alpha)(1 - y); 1 where alpha is negative, which switches it off."""
    return alpha * y + (1.0 - alpha) * (1.0 - y) if alpha >= 0 else 1.0


def modulated_cross_entropy(
    z: Tensor,
    y: Tensor,
    base: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    gamma: float | Tensor,
) -> tuple[Tensor, Tensor]:
    """v = b^gamma BCE(z, y) for soft targets, and its derivative to the logit.

        dv/dz = b^gamma (p - y) + gamma b^(gamma - 1) b' p (1 - p) BCE

    Args:
        z, y: logits and targets in [0, 1], same shape.
        base: the base of the power, ``distance`` or ``mixture``: (p, 1 - p, y) to b and b' = db/dp.
        gamma: a number or a tensor that broadcasts.

    Returns:
        v and dv/dz, of z's shape. At y = 0 and y = 1 both conventions give the hard target's v and G_gamma.
    """
    p, q = torch.sigmoid(z), torch.sigmoid(-z)
    b, b_slope = base(p, q, y)
    # (max(z, 0) - y z) + ln(1 + exp(-|z|)): small losses keep the digits that torch's BCE from logits loses.
    cross_entropy = z.clamp(min=0).addcmul_(z, y, value=-1).add_(negative_log(z.abs().neg_()))
    factor = modulation(b, gamma)
    # b^(gamma - 1) diverges at b = 0 for gamma < 1, but is multiplied by 0 there: a floor keeps the product 0.
    tail = modulation(b.clamp(min=torch.finfo(z.dtype).tiny), gamma - 1.0)
    tail *= b_slope * p * q * cross_entropy
    return factor * cross_entropy, torch.addcmul(tail * gamma, factor, _difference(p, q, y))


def distance(p: Tensor, q: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """b = |p - y|: Quality Focal Loss (Li et al. 2020, eq. 3), used by maps with soft targets."""
    difference = _difference(p, q, y)
    return difference.abs(), difference.sign()


def mixture(p: Tensor, q: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """b = 1 - p_t = p (1 - y) + (1 - p) y: torchvision's convention for soft targets."""
    return torch.lerp(p, q, y), 1.0 - 2.0 * y


def _difference(p: Tensor, q: Tensor, y: Tensor) -> Tensor:
    """p - y as (1 - y) p - y (1 - p), which keeps its digits at y = 0 and y = 1; q = 1 - p."""
    return torch.lerp(p, -q, y)
