"""A dense, slow and obvious version of the fused losses, differentiated by autograd.

Nothing here is shared with ``gradient``, ``primitive`` or ``dense``: targets are spelled out as matrices, the
element loss is written down as in the papers, and every gradient, the one inside the gate included, comes
from autograd. Tests compare the two. Use float64 logits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from afl.losses.target import ClassificationTarget
from afl.losses.weighting import ElementWeights


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    """BCE(z, y) = -y ln p - (1 - y) ln(1 - p)."""
    return -y * F.logsigmoid(z) - (1 - y) * F.logsigmoid(-z)


def focal_loss(z: Tensor, y: Tensor, gamma: float | Tensor) -> Tensor:
    """(1 - p_t)^gamma BCE with 1 - p_t = p (1 - y) + (1 - p) y, torchvision's convention for soft targets."""
    return (torch.sigmoid(z) * (1 - y) + torch.sigmoid(-z) * y) ** gamma * cross_entropy(z, y)


def quality_focal_loss(z: Tensor, y: Tensor, gamma: float | Tensor) -> Tensor:
    """|p - y|^gamma BCE, with p - y written so that it is exact at y = 0 and y = 1."""
    return (torch.sigmoid(z) * (1 - y) - torch.sigmoid(-z) * y).abs() ** gamma * cross_entropy(z, y)


def alpha_t(y: Tensor, alpha: float) -> Tensor:
    """alpha on positives, 1 - alpha on negatives, in proportion on soft targets; negative alpha: 1."""
    return alpha * y + (1 - alpha) * (1 - y) if alpha >= 0 else torch.ones_like(y)


def gate(z: Tensor, element_loss: Tensor, weight: Tensor, strength: float | Tensor) -> Tensor:
    """1 / (1 + strength u), u = |d(weight loss)/dz|, a constant; ``element_loss`` is a function of ``z``."""
    (slope,) = torch.autograd.grad((weight * element_loss).sum(), z)
    return 1 / (1 + strength * slope.abs())


def adaptive_focal_loss(
    logits: Tensor,
    targets: Tensor,
    class_weights: Tensor,
    strength: float | Tensor,
    alpha: float,
    gamma: float,
) -> Tensor:
    """Dense targets (..., C): w^y A alpha_t (1 - p_t)^gamma BCE, elementwise; ``strength`` is kappa / tau."""
    weight = 1 + (class_weights - 1) * targets
    z = logits.detach().requires_grad_()
    closed = gate(z, focal_loss(z, targets, gamma), weight, strength)
    return closed * weight * alpha_t(targets, alpha) * focal_loss(logits, targets, gamma)


def weighted_loss(
    logits: Tensor, target: ClassificationTarget, weights: ElementWeights, normalizer: Tensor
) -> Tensor:
    """Sparse target (R, C): the sum over elements of W A alpha_t |p - y|^gamma BCE, over the normaliser."""
    logits = logits + dense_shift(target, logits)
    y, weight = dense_target(target, weights, logits)
    strength = 0.0 if weights.gate is None else weights.gate
    gamma = weights.gamma
    if weights.positive_gamma is not None:
        gamma = torch.zeros_like(y) + gamma
        gamma.view(-1)[target.positive[target.positive >= 0]] = weights.positive_gamma
    z = logits.detach().requires_grad_()
    closed = gate(z, quality_focal_loss(z, y, gamma), weight, strength)
    loss = closed * weight * alpha_t(y, weights.alpha) * quality_focal_loss(logits, y, gamma)
    return loss.sum() / normalizer


def dense_shift(target: ClassificationTarget, logits: Tensor) -> Tensor:
    """(R, C) what the target adds to each logit, of the logits' type."""
    shift = torch.zeros_like(logits)
    if target.shift is not None:
        shift = shift + target.shift
    if target.positive_shift is not None:
        for position, index in enumerate(target.positive.tolist()):
            if index >= 0:
                shift[index // target.num_classes, index % target.num_classes] += target.positive_shift[
                    position
                ]
    return shift


def dense_target(
    target: ClassificationTarget, weights: ElementWeights, logits: Tensor
) -> tuple[Tensor, Tensor]:
    """The target and the weight W of every element, both (R, C), of the logits' type."""
    y, weight = torch.zeros_like(logits), torch.ones_like(logits)
    if weights.negative_class is not None:
        weight = weight * weights.negative_class
    if weights.negative_location is not None:
        weight = weight * weights.negative_location[:, None]
    if weights.negative_element is not None:
        weight = weight * weights.negative_element
    if weights.slot is not None:
        for row, slot in enumerate(weights.slot.tolist()):
            if slot >= 0:
                weight[row] *= weights.negative_slot[slot]
    if weights.negative_bin is not None:
        bins = len(weights.negative_bin)
        place = (torch.sigmoid(logits.detach()) * bins).floor().clamp(max=bins - 1).long()
        weight = weight * weights.negative_bin[place]
    if target.negative_index is not None:
        for index, scale in zip(target.negative_index.tolist(), target.negative_scale.tolist(), strict=True):
            if index >= 0:
                weight[index // target.num_classes, index % target.num_classes] *= scale
    if target.ignored is not None:
        weight[target.ignored] = 0
    if target.verified is not None:
        weight[~target.verified[target.image]] = 0
    for position, index in enumerate(target.positive.tolist()):
        if index >= 0:
            element = index // target.num_classes, index % target.num_classes
            y[element] = 1 if target.value is None else target.value[position]
            weight[element] = 1 if weights.positive is None else weights.positive[position]
    return y, weight
