"""The weights of all elements of a map, as a chain of weightings passes them on; never one dense tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from afl.losses.gradient import computing_type
from afl.losses.image_repeats import ImageRepeats
from afl.losses.target import ClassificationTarget


@dataclass(frozen=True)
class ElementWeights:
    """The element loss and the product W of the weights so far; None means 1 everywhere.

    The weight of a positive element is ``positive``. That of a negative element is the product of ``negative_class``,
    ``negative_location``, ``negative_element``, ``negative_slot`` and ``negative_bin``, times the target's
    ``negative_scale``. All tensors are detached.

    Attributes:
        alpha: balance of positives and negatives, negative switches it off.
        gamma: focusing exponent, one number or (C,).
        positive_gamma: exponent of the positives, one number; None takes ``gamma``.
        positive: (P,) weights of the target's positives, in its order.
        negative_class: (C,) weights of negatives.
        negative_location: (R,) weights of negatives.
        negative_element: (R, C) weights of single negatives.
        slot: (R,) int32, row of ``negative_slot`` that belongs to a location; -1 where no row does.
        negative_slot: (S, C) weights of the negatives at the locations that have a slot; 1 at the others.
        negative_bin: (M,) weights of negatives by the size g of their gradient, in M equal bins of [0, 1].
        gate: kappa / tau of the Adaptive Gradient Function, scalar or (C,); None: no gate. The gate sees the
            whole W, whatever its place in the chain, so it bounds the final gradient.
    """

    alpha: float
    gamma: float | Tensor
    positive: Tensor | None = None
    negative_class: Tensor | None = None
    negative_location: Tensor | None = None
    negative_element: Tensor | None = None
    slot: Tensor | None = None
    negative_slot: Tensor | None = None
    negative_bin: Tensor | None = None
    gate: Tensor | None = None
    positive_gamma: float | None = None

    @property
    def gamma_of_positives(self) -> float | Tensor:
        """Focusing exponent of the positives, one number or (C,)."""
        return self.gamma if self.positive_gamma is None else self.positive_gamma

    def times(
        self,
        *,
        positive: Tensor | None = None,
        negative_class: Tensor | None = None,
        negative_location: Tensor | None = None,
        negative_element: Tensor | None = None,
    ) -> ElementWeights:
        """The same weights, each of the four products multiplied by the factor given for it."""
        return replace(
            self,
            positive=_product(self.positive, positive),
            negative_class=_product(self.negative_class, negative_class),
            negative_location=_product(self.negative_location, negative_location),
            negative_element=_product(self.negative_element, negative_element),
        )

    def times_at(self, slot: Tensor, weight: Tensor) -> ElementWeights:
        """The same weights, the negatives at some locations multiplied by ``weight``.

        Args:
            slot: (R,) int32, the row of ``weight`` that belongs to a location, -1 where none does; no row belongs to two.
            weight: (S, C).
        """
        if self.slot is None or self.negative_slot is None:
            return replace(self, slot=slot, negative_slot=weight)
        # Locations of the first table keep their row of it, times their row of the second.
        first, second = len(self.negative_slot), weight.new_ones(1, weight.shape[1])
        both = torch.full((first + 1,), -1, dtype=torch.int64, device=slot.device)
        both[torch.where(self.slot >= 0, self.slot, first).long()] = slot.long()
        both = both[:-1]
        table = torch.cat([self.negative_slot * torch.cat([weight, second])[both], weight])
        return replace(
            self,
            slot=torch.where(self.slot >= 0, self.slot, torch.where(slot >= 0, slot + first, -1)),
            negative_slot=table,
        )


def _product(weight: Tensor | None, factor: Tensor | None) -> Tensor | None:
    if weight is None or factor is None:
        return factor if weight is None else weight
    return weight * factor


class Weighting(nn.Module):
    """A link of the chain: multiplies the weights of the links before it by its own.

    ``forward`` runs without gradient and accumulates statistics in training mode only. ``update`` sums them over
    ranks and updates the running state, which is kept in buffers.

    Attributes:
        sets_gate: whether ``forward`` sets ``ElementWeights.gate``; a chain has at most one such link.
        reads_positive_weights: whether the link depends on the weights that the links before it give to positives.
        fades: whether the link changes the size of the whole loss, which a gate or a scaled loss would undo.
        uses_overlap: whether the detector must fill ``target.overlap``.
        head_prior: probability that a fresh head must give to every element; None keeps the detector's own.
        image_repeats: how often training repeats images with rare classes; None leaves that to the data set.
        class_layers_only: whether training starts from a finished run and trains nothing but fresh class layers.
    """

    sets_gate: bool = False
    reads_positive_weights: bool = False
    fades: bool = False
    uses_overlap: bool = False
    head_prior: float | None = None
    image_repeats: ImageRepeats | None = None
    class_layers_only: bool = False

    def prepared(self, target: ClassificationTarget) -> ClassificationTarget:
        """The target that the loss is computed on; every link's is applied before the first link's ``forward``.

        A link that leaves elements out or shifts logits overrides this; the default changes nothing.
        """
        return target

    def forward(
        self, logits: Tensor, target: ClassificationTarget, weights: ElementWeights
    ) -> ElementWeights:
        """Detached logits (R, C) to the weights of the chain up to and including this link."""
        return weights

    def calibrated(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Weight (A C, ...) and bias (A C,) of the map's last layer as evaluation uses them; channel a C + c is of class c."""
        return weight, bias

    @property
    def rescoring(self) -> Callable[[Tensor], Tensor] | None:
        """A change of the last layer's logits (B, A C, ...) at evaluation, after ``calibrated``; None changes nothing."""
        return None

    def update(self) -> None:
        """Update the running state from what ``forward`` accumulated; called once per optimiser step."""

    def statistics(self) -> dict[str, float | Tensor]:
        """Numbers for the log."""
        return {}


class StepCounting(Weighting):
    """A link whose weights depend on the number of optimiser steps so far, ``steps``."""

    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def update(self) -> None:
        self.steps += 1


def positive_logits(logits: Tensor, target: ClassificationTarget) -> Tensor:
    """(P,) logits of the target's positives in the computing type; at padding, some other element's."""
    if not logits.numel():
        return logits.new_zeros(target.positive.shape, dtype=computing_type(logits.dtype))
    z = logits.reshape(-1)[target.positive.clamp(min=0)].to(computing_type(logits.dtype))
    if target.shift is not None:
        z = z + target.shift.to(z.dtype)[target.positive_class]
    return z if target.positive_shift is None else z + target.positive_shift.to(z.dtype)


def positive_hardness(logits: Tensor, target: ClassificationTarget) -> Tensor:
    """(P,) g = |p - y| of the target's positives, 0 at padding."""
    z = positive_logits(logits, target)
    g = torch.sigmoid(-z) if target.value is None else (torch.sigmoid(z) - target.value).abs()
    return torch.where(target.is_positive, g, 0.0)
