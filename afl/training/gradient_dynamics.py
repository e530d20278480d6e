"""Measures the gradient of a loss: |dL/dz| of positives and negatives by frequency group.

The value of every loss can be differentiated with respect to the logits. On the steps that are logged, a hook on each loss
module does so with one additional backward pass through the loss, not through the network. This works for every loss that
follows the contract. Later operations on the value (its weight in the sum, accumulation) do not change the figures. The
measurement does not affect training: it changes neither the graph nor the gradients nor the run's random numbers.

Names of the figures, where MAP is a classification map of the detector, SIGN ``positive`` or ``negative`` and GROUP
``r``, ``c``, ``f``, or ``all`` on a map without classes:

    gradient/MAP/SIGN/GROUP/count        number of elements that contribute to the loss
    gradient/MAP/SIGN/GROUP/sum          sum of |dL/dz|
    gradient/MAP/SIGN/GROUP/q10          quantile of |dL/dz|; also q50, q90
    gradient/MAP/SIGN/GROUP/gate_q10     quantile of the Adaptive Gradient Function's gate; also q50, q90
    gradient/MAP/positive/GROUP/weight   mean weight W of the chain for positives
    gradient/MAP/LINK/KEY                statistics of a link, such as ghat and kappa
    gradient/MAP/LINK/KEY/GROUP          mean of a statistic over a group's classes, if it has a value for each class, (C,)

|dL/dz| is measured before division by the normaliser, so that losses and batches are comparable. The figures describe the
last part of the step's batch on the main process, like the losses that are logged with them. A group without elements in the
batch has no quantiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from afl.losses import ClassificationTarget, ElementWeights, MapLoss
from afl.losses.gradient import alpha_balance, computing_type, gate_of_gated

QUANTILES = (0.1, 0.5, 0.9)
ALL = "all"
# Quantiles are computed from at most this many elements; larger maps are sampled.
SAMPLE = 100_000


class GradientDynamics:
    """A context manager that measures the losses called inside it; ``figures`` returns the latest measurements.

    Args:
        losses: by name of their map.
        groups: (C,) "r", "c" or "f" of each class.
    """

    def __init__(self, losses: Mapping[str, MapLoss], groups: Sequence[str]) -> None:
        self._losses = dict(losses)
        self._groups = list(groups)
        self._hooks: list[Any] = []
        self._seen: dict[str, dict[str, Tensor]] = {}

    def __enter__(self) -> GradientDynamics:
        self._seen = {}
        self._hooks = [
            loss.register_forward_hook(partial(self._look, name), with_kwargs=True)
            for name, loss in self._losses.items()
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def figures(self) -> dict[str, float]:
        """All figures that the module docstring lists; waits for the device."""
        figures = {
            f"gradient/{name}/{key}": float(value)
            for name, seen in self._seen.items()
            for key, value in seen.items()
        }
        for name, loss in self._losses.items():
            for key, value in loss.statistics().items():
                value = torch.as_tensor(value).detach().float().cpu()
                figures[f"gradient/{name}/{key}"] = float(value.mean())
                if value.ndim == 1:
                    for group, members in self._members(len(value)).items():
                        figures[f"gradient/{name}/{key}/{group}"] = float(value[members].mean())
        return figures

    def _look(self, name: str, loss: MapLoss, args: tuple, kwargs: dict[str, Any], value: Tensor) -> None:
        call = dict(zip(("logits", "target", "normalizer"), args, strict=False)) | kwargs
        logits, target = call["logits"], call["target"]
        # A loss may not depend on the logits of a batch.
        gradient = torch.zeros_like(logits)
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value, logits, retain_graph=True, materialize_grads=True)
        with torch.no_grad():
            size = gradient.abs().to(computing_type(gradient.dtype)) * call["normalizer"]
            self._seen[name] = element_figures(size, target, self._members(target.num_classes), loss.seen)

    def _members(self, num_classes: int) -> dict[str, Tensor]:
        """(C,) bool by group; a map whose classes are not those of the data set has one group."""
        if num_classes != len(self._groups):
            return {ALL: torch.ones(num_classes, dtype=torch.bool)}
        return {
            group: torch.tensor([own == group for own in self._groups])
            for group in "rcf"
            if group in self._groups
        }


def element_figures(
    size: Tensor,
    target: ClassificationTarget,
    members: Mapping[str, Tensor],
    seen: tuple[Tensor | None, ElementWeights] | None = None,
) -> dict[str, Tensor]:
    """Count, sum and quantiles by sign and group, as ``SIGN/GROUP/FIGURE``.

    Sums cover all elements. Quantiles of negatives use at most ``SAMPLE`` elements, drawn from the whole map.

    Args:
        size: (R, C), |dL/dz| of every element.
        target: of the map; ignored locations and unverified classes are excluded.
        members: (C,) bool by group.
        seen: soft values (P,) and weights of the positives and the gate, as ``ClassificationLoss`` keeps them; None
            for other losses.
    """
    value, weights = seen if seen is not None else (None, None)
    classes = target.num_classes
    flat = size.reshape(-1)
    present = target.is_positive
    positive = target.positive[present]
    negative = torch.ones_like(size, dtype=torch.bool)
    if target.ignored is not None:
        negative[target.ignored] = False
    if target.verified is not None:
        negative &= target.verified[target.image]
    negative.view(-1)[positive] = False
    sampled = _sample(flat)
    sampled = sampled[negative.view(-1)[sampled]]

    # By sign: the elements for the quantiles, their soft targets, and count and sum of |dL/dz| of every class.
    by_class = flat.new_zeros(2, classes, dtype=torch.float64)
    by_class.index_add_(
        1, positive % classes, torch.stack([torch.ones_like(flat[positive]), flat[positive]]).double()
    )
    parts = {
        "positive": (positive, 1.0 if value is None else value[present], by_class),
        "negative": (
            sampled,
            0.0,
            torch.stack([negative.sum(0), (size * negative).sum(0, dtype=torch.float64)]),
        ),
    }
    figures = {}
    for sign, (index, y, (count, total)) in parts.items():
        label = index % classes
        quantities = {"": flat[index]}
        if weights is not None and weights.gate is not None:
            strength = weights.gate[label] if weights.gate.ndim else weights.gate
            quantities["gate_"] = gate_of_gated(flat[index] / alpha_balance(y, weights.alpha), strength)
        for group, member in members.items():
            member = member.to(size.device)
            of_group = member[label]
            figures[f"{sign}/{group}/count"] = count[member].sum()
            figures[f"{sign}/{group}/sum"] = total[member].sum()
            if not bool(of_group.any()):
                continue
            for prefix, numbers in quantities.items():
                cuts = torch.quantile(numbers[of_group], numbers.new_tensor(QUANTILES))
                for q, cut in zip(QUANTILES, cuts, strict=True):
                    figures[f"{sign}/{group}/{prefix}q{round(100 * q)}"] = cut
            if sign == "positive" and weights is not None and weights.positive is not None:
                figures[f"{sign}/{group}/weight"] = weights.positive[present][of_group].mean()
    return figures


def _sample(flat: Tensor) -> Tensor:
    """Indices of all elements, or of a random sample of ``SAMPLE`` elements.

    The sample is random because a fixed stride may share a factor with the number of classes. It has a separate generator, so
    that the run's random numbers do not change.
    """
    if flat.numel() <= SAMPLE:
        return torch.arange(flat.numel(), device=flat.device)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(flat.numel(), (SAMPLE,), generator=generator).to(flat.device)
