"""The focal family for dense targets, for any training loop.

Targets have the logits' shape and values in [0, 1], as in torchvision's ``sigmoid_focal_loss``. The operations are fused:
logits and targets are read once, the gradient is written once, and nothing else is kept for backward. The losses
differentiate once; a second derivative is refused (torchvision's focal loss has one).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from afl.losses.adaptive_gradient import check_gate
from afl.losses.class_weights import Normalization, class_balanced_weights
from afl.losses.dense import dense_loss, hardness_of_positives
from afl.losses.maturity import Maturity

Reduction = Literal["none", "mean", "sum"]


def sigmoid_focal_loss(
    logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0, reduction: Reduction = "none"
) -> Tensor:
    """alpha_t (1 - p_t)^gamma BCE(z, y), equal to torchvision's (Lin et al. 2017, eq. 5).

    Args:
        logits: any shape, any floating type; computed in float32, float64 stays float64.
        targets: same shape, in [0, 1]; no gradient flows to them.
        alpha: weight of positives, 1 - alpha that of negatives; negative switches the balance off.
        gamma: focusing exponent, 0 is cross-entropy.
        reduction: ``none`` | ``mean`` | ``sum``.

    Returns:
        The logits' shape, or a scalar; float32 (float64 for float64 logits). The sum and the mean of nothing are 0.

    Raises:
        ValueError: if shapes differ or an argument is out of its range.
        RuntimeError: if its gradient is differentiated; this loss has no second derivative, torchvision's has one.
    """
    return dense_loss(logits, targets, None, None, alpha, gamma, reduction)


def class_balanced_focal_loss(
    logits: Tensor,
    targets: Tensor,
    class_weights: Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    reduction: Reduction = "none",
) -> Tensor:
    """Focal loss with class weights on positives: an element weighs 1 + (w_c - 1) y (after Cui et al. 2019).

    Args:
        logits, targets: (..., C).
        class_weights: (C,), for example of ``class_balanced_weights``.
        alpha, gamma, reduction: see ``sigmoid_focal_loss``; gamma 0 and alpha -1 give class-balanced
            cross-entropy.

    Returns:
        See ``sigmoid_focal_loss``.

    Raises:
        ValueError, RuntimeError: as ``sigmoid_focal_loss``; ValueError also if there is not one class weight for each class.
    """
    return dense_loss(logits, targets, class_weights, None, alpha, gamma, reduction)


def adaptive_focal_loss(
    logits: Tensor,
    targets: Tensor,
    class_weights: Tensor,
    kappa: float | Tensor = 1.0,
    tau: float = 1.0,
    alpha: float = 0.25,
    gamma: float = 2.0,
    reduction: Reduction = "none",
) -> Tensor:
    """Adaptive Focal Loss, a reconstruction: class-balanced focal loss times A = 1 / (1 + kappa u / tau).

    u is the size of an element's weighted gradient without alpha_t. The gate A is detached, so the resulting gradient is
    alpha_t u / (1 + kappa u / tau), which is at most alpha_t tau / kappa.

    Args:
        logits, targets: (..., C).
        class_weights: (C,).
        kappa: strength of the gate, scalar or (C,); 0 gives class-balanced focal loss. ``AdaptiveFocalLoss``
            updates it during training.
        tau: with kappa 1, the bound of the gradient; only kappa / tau has an effect.
        alpha, gamma, reduction: see ``sigmoid_focal_loss``.

    Returns:
        See ``sigmoid_focal_loss``.

    Raises:
        ValueError, RuntimeError: as ``class_balanced_focal_loss``; ValueError also if tau is not positive, or kappa is a negative
            number or has neither one value nor one for each class.
    """
    if isinstance(kappa, Tensor):
        check_gate(0.0, tau)
        strength = kappa.detach() / tau
    else:
        check_gate(kappa, tau)
        strength = torch.full((), kappa / tau, device=logits.device)
    return dense_loss(logits, targets, class_weights, strength, alpha, gamma, reduction)


class AdaptiveFocalLoss(nn.Module):
    """Adaptive Focal Loss that updates kappa itself, for any training loop.

    Every forward in training mode computes the loss with the current running mean of g over positives and then updates that
    mean, so call it once for each optimiser step, with all images of the batch. Under torch.distributed the update is one small
    all-reduce, so all ranks must call it equally often. In evaluation mode the mean stays. The state is in buffers and therefore
    in ``state_dict``.

        loss = AdaptiveFocalLoss(instances_per_class, reduction="sum")
        (loss(logits, targets) / targets.sum().clamp(min=1)).backward()

    Args:
        instances_per_class: (C,) training instances of each class.
        beta, normalize, cap: see ``class_balanced_weights``.
        kappa: strength of the gate for a fresh head, which falls to 0 as the positives are learnt.
        tau, alpha, gamma, reduction: see ``adaptive_focal_loss``.
        prior: probability that the fresh head gives to every element, set by its last bias.
        momentum: of the running mean, for each forward in training mode; threshold: see ``Maturity``.
    """

    class_weights: Tensor

    def __init__(
        self,
        instances_per_class: Tensor,
        *,
        beta: float = 0.999,
        normalize: Normalization = "instances",
        cap: float | None = 5.0,
        kappa: float = 1.0,
        tau: float = 1.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
        reduction: Reduction = "none",
        prior: float = 0.01,
        momentum: float = 0.99,
        threshold: float = 0.5,
    ) -> None:
        super().__init__()
        check_gate(kappa, tau)
        self.kappa_0, self.tau, self.alpha, self.gamma, self.reduction = kappa, tau, alpha, gamma, reduction
        self.maturity = Maturity(prior=prior, threshold=threshold, momentum=momentum)
        self.register_buffer(
            "class_weights", class_balanced_weights(instances_per_class, beta, normalize, cap)
        )

    @property
    def kappa(self) -> Tensor:
        """Strength of the gate now, scalar."""
        return self.kappa_0 * self.maturity.immaturity

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits and targets (..., C) to the loss, see ``adaptive_focal_loss``."""
        loss = adaptive_focal_loss(
            logits, targets, self.class_weights, self.kappa, self.tau, self.alpha, self.gamma, self.reduction
        )
        if self.training:
            total, count = hardness_of_positives(logits.detach(), targets)
            mean = total / torch.where(count > 0, count, 1.0)
            self.maturity.observe(mean[None], count[None])
            self.maturity.update()
        return loss
