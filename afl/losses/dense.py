"""The fused element loss for dense targets, behind the public functions."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

import torch
from torch import Tensor

from afl.losses.fused import (
    block_rows,
    gradient_of_logits,
    gradient_type,
    no_autocast,
    save_gradient,
    uses_triton,
)
from afl.losses.gradient import (
    alpha_balance,
    computing_type,
    gate,
    gradient_size,
    mixture,
    modulated_cross_entropy,
    modulation,
    negative_log,
)

# Elements of a block on a CPU: few enough for the cache, many enough that the calls of operations cost little.
_BLOCK = 1 << 18
# Plain negatives are computed separately if they outnumber the other elements by this factor.
_SPARSE = 8


def dense_loss(
    logits: Tensor,
    targets: Tensor,
    class_weights: Tensor | None,
    strength: Tensor | None,
    alpha: float,
    gamma: float,
    reduction: str,
) -> Tensor:
    """w^y A alpha_t (1 - p_t)^gamma BCE(z, y), reduced; ``strength`` is kappa / tau of the gate A or None.
    See docs/losses.md.

    Raises:
        ValueError: a shape does not fit the logits, ``reduction`` is unknown, gamma is negative, or alpha is above 1.
    """
    if logits.shape != targets.shape:
        raise ValueError(
            f"Targets of shape {tuple(targets.shape)} do not fit logits of shape {tuple(logits.shape)}."
        )
    if class_weights is not None and (logits.ndim == 0 or class_weights.shape != logits.shape[-1:]):
        raise ValueError(
            f"Class weights of shape {tuple(class_weights.shape)} do not fit logits of shape "
            f"{tuple(logits.shape)}, whose last dimension is that of the classes."
        )
    if strength is not None and strength.ndim and strength.shape != logits.shape[-1:]:
        raise ValueError(
            f"kappa of shape {tuple(strength.shape)} does not fit logits of shape {tuple(logits.shape)}: give one number, or one "
            "for each class, the last dimension."
        )
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction is {reduction!r}, but must be 'none', 'mean' or 'sum'.")
    if gamma < 0 or alpha > 1:
        raise ValueError(f"gamma {gamma} must not be negative, alpha {alpha} in [0, 1] or negative (off).")
    differentiable = torch.is_grad_enabled() and logits.requires_grad
    return _DenseLoss.apply(
        logits, targets, class_weights, strength, float(alpha), float(gamma), reduction, differentiable
    )


class _DenseLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, targets, class_weights, strength, alpha, gamma, reduction, differentiable):
        scale = 1.0 / max(logits.numel(), 1) if reduction == "mean" else 1.0
        if uses_triton(logits):
            loss, gradient = import_module("afl.losses.triton_dense").loss_and_gradient(
                logits,
                targets,
                class_weights,
                strength,
                alpha,
                gamma,
                scale,
                each=reduction == "none",
                differentiable=differentiable,
            )
            if differentiable:
                save_gradient(ctx, gradient, logits.dtype)
            return loss
        dtype, device = computing_type(logits.dtype), logits.device
        z_rows, y_rows = _as_rows(logits), _as_rows(targets)
        each = reduction == "none"
        losses = torch.empty(z_rows.shape, dtype=dtype, device=device) if each else None
        stored = gradient_type(logits.dtype)
        gradient = torch.empty(z_rows.shape, dtype=stored, device=device) if differentiable else None
        total = torch.zeros((), dtype=torch.float64, device=device)
        with no_autocast(device):
            for rows in _blocks(z_rows):
                z, y = (matrix[rows].to(dtype).contiguous() for matrix in (z_rows, y_rows))
                place = gradient[rows] if gradient is not None and gradient.dtype == dtype else None
                loss, slope = _block_terms(z, y, class_weights, strength, alpha, gamma, place)
                if each:
                    losses[rows] = loss
                else:
                    total += loss.sum()
                if scale != 1.0:
                    slope *= scale
                if gradient is not None and slope is not place:
                    gradient[rows] = slope
        if differentiable:
            save_gradient(ctx, gradient.view(logits.shape), logits.dtype)
        return losses.view(logits.shape) if each else (total * scale).to(dtype)

    @staticmethod
    def backward(ctx, upstream):
        return gradient_of_logits(ctx, upstream), *(None,) * 7


def _block_terms(
    z: Tensor,
    y: Tensor,
    class_weights: Tensor | None,
    strength: Tensor | None,
    alpha: float,
    gamma: float,
    place: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Weighted losses and signed gradients of a block (n, C), gradients in ``place`` if it is given."""
    # On a CPU it is cheap to find the few elements that are not plain negatives and compute only those in full.
    index = _indices_of_others(y) if z.device.type == "cpu" else None
    if index is None or _SPARSE * index.numel() > y.numel():
        return _terms(z, y, class_weights, strength, alpha, gamma)
    loss, slope = _negative_terms(z, strength, alpha, gamma, place)
    label = index % z.shape[1]
    own = [value if value is None or value.ndim == 0 else value[label] for value in (class_weights, strength)]
    loss.view(-1)[index], slope.view(-1)[index] = _terms(
        z.view(-1)[index], y.view(-1)[index], *own, alpha, gamma
    )
    return loss, slope


def _indices_of_others(y: Tensor) -> Tensor:
    """(K,) flat indices of the non-zero targets (n, C); summing rows first avoids most of the search."""
    rows = y.sum(1).nonzero().squeeze(1)
    position, label = y[rows].nonzero(as_tuple=True)
    return rows[position] * y.shape[1] + label


def _terms(
    z: Tensor, y: Tensor, class_weights: Tensor | None, strength: Tensor | None, alpha: float, gamma: float
) -> tuple[Tensor, Tensor]:
    """Weighted losses and signed gradients of any elements; class weights and strength broadcast to them."""
    loss, slope = modulated_cross_entropy(z, y, mixture, gamma)
    weight = torch.ones_like(y) if class_weights is None else 1.0 + (class_weights.to(z.dtype) - 1.0) * y
    factor = weight * alpha_balance(y, alpha)
    if strength is not None:
        factor *= gate(weight.mul_(slope).abs_(), strength.to(z.dtype))
    return loss.mul_(factor), slope.mul_(factor)


def _negative_terms(
    z: Tensor, strength: Tensor | None, alpha: float, gamma: float, place: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same where every element is a plain negative, for which class weights are 1."""
    g = torch.sigmoid(z)
    factor = modulation(g, gamma)
    loss = negative_log(z).mul_(factor)
    slope = gradient_size(g, factor, loss, gamma, out=place)
    balance = alpha_balance(0.0, alpha)
    if strength is None:
        return loss.mul_(balance), slope.mul_(balance)
    closed = gate(slope, strength.to(z.dtype), out=g).mul_(balance)
    return loss.mul_(closed), slope.mul_(closed)


def hardness_of_positives(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of y |p - y| and of y over all elements, float64 scalars: their ratio is the positives' mean g."""
    dtype = computing_type(logits.dtype)
    total, count = torch.zeros((2,), dtype=torch.float64, device=logits.device)
    z_rows, y_rows = _as_rows(logits), _as_rows(targets)
    for rows in _blocks(z_rows):
        y = y_rows[rows].to(dtype)
        total += torch.sigmoid(z_rows[rows].to(dtype)).sub_(y).abs_().mul_(y).sum()
        count += y.sum()
    return total, count


def _as_rows(tensor: Tensor) -> Tensor:
    """(..., C) as a matrix (N, C), C may be 0; a view wherever possible."""
    tensor = tensor.detach()
    return tensor.reshape(1, -1) if tensor.ndim < 2 else tensor.flatten(0, -2)


def _blocks(rows: Tensor) -> Iterator[slice]:
    step = block_rows(rows.shape[1], rows.device, _BLOCK)
    return (slice(start, start + step) for start in range(0, rows.shape[0], step))
