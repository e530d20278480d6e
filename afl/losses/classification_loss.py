"""One loss for every map: a focal element loss under a chain of weightings.

    loss = (1 / N) sum over elements of W A alpha_t g^gamma BCE(z, y)

where g = |p - y|, W is the product of the chain's weights and A its gate; both are detached. docs/losses.md
defines all symbols. The empty chain is focal loss; the other losses are files of ``conf/loss``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from afl.losses.contract import MapInfo, MapLoss
from afl.losses.image_repeats import ImageRepeats
from afl.losses.primitive import weighted_loss
from afl.losses.target import ClassificationTarget
from afl.losses.weighting import ElementWeights, Weighting


class ClassificationLoss(MapLoss):
    """Sum of the weighted element losses of one map, divided by the caller's normaliser.

    Args:
        info: the map the loss is for.
        chain: ordered names and factories of weightings, each called with ``info``. A factory that is None is
            skipped, so a configuration can set a link to null.
        gamma: focusing exponent, 0 is cross-entropy.
        alpha: balance of positives and negatives; None takes the head's usual one; negative switches it off.

    Raises:
        ValueError: a value is out of range, or links of the chain exclude each other.
    """

    def __init__(
        self,
        info: MapInfo,
        *,
        chain: Mapping[str, Callable[[MapInfo], Weighting]] | None = None,
        gamma: float = 2.0,
        alpha: float | None = None,
    ) -> None:
        super().__init__(info)
        self.gamma = float(gamma)
        self.alpha = float(info.alpha if alpha is None else alpha)
        self.chain = nn.ModuleDict(
            {name: factory(info) for name, factory in (chain or {}).items() if factory is not None}
        )
        self.uses_overlap = any(link.uses_overlap for link in self.chain.values())
        gates = [name for name, link in self.chain.items() if link.sets_gate]
        if len(gates) > 1:
            raise ValueError(
                f"the links {', '.join(gates)} of the chain each set the gate, and a loss has only one; remove the others."
            )
        fading = [name for name, link in self.chain.items() if link.fades]
        if fading and gates:
            raise ValueError(
                f"the link {fading[0]} of the chain fades the loss in, and the gate of {gates[0]} would undo a part of it; remove one."
            )
        names = list(self.chain)
        undoing = [name for name, link in self.chain.items() if link.reads_positive_weights]
        if fading and undoing and names.index(fading[0]) < names.index(undoing[-1]):
            raise ValueError(
                f"the link {fading[0]} of the chain fades the loss in, and {undoing[-1]} after it would undo a part of it; put "
                f"{fading[0]} last."
            )
        for request in ("image_repeats", "head_prior"):
            asking = [name for name, link in self.chain.items() if getattr(link, request) is not None]
            if len(asking) > 1:
                raise ValueError(
                    f"the links {', '.join(asking)} of the chain each set {request}, and a loss has only one; remove the others."
                )
        if self.gamma < 0:
            raise ValueError(f"gamma is {gamma}, but the focusing exponent must not be negative.")
        if self.alpha > 1:
            raise ValueError(
                f"alpha is {self.alpha}, but it must lie in [0, 1], or be negative to switch it off."
            )

    def compute(
        self, logits: Tensor, target: ClassificationTarget, normalizer: Tensor, localization: Tensor | None
    ) -> Tensor:
        weights = ElementWeights(alpha=self.alpha, gamma=self.gamma)
        with torch.no_grad():
            target = self.prepared(target)
            for link in self.chain.values():
                weights = link(logits.detach(), target, weights)
            if self.training:
                # Nothing that has the size of the map is kept.
                self.seen = (
                    target.value,
                    ElementWeights(
                        alpha=weights.alpha, gamma=weights.gamma, positive=weights.positive, gate=weights.gate
                    ),
                )
        return weighted_loss(logits, target, weights, normalizer)

    def prepared(self, target: ClassificationTarget) -> ClassificationTarget:
        """The changes of all links, one after the other."""
        for link in self.chain.values():
            target = link.prepared(target)
        return target

    @property
    def wants_prior(self) -> bool:
        """Whether a link requests a prior."""
        return self._head_prior() is not None

    def prior_from_data(self, positives_per_image: float, elements_per_image: float) -> float:
        """The prior of the link that requests one; it does not depend on the data."""
        prior = self._head_prior()
        return self.info.prior if prior is None else prior

    def _head_prior(self) -> float | None:
        wanted: list[Any] = [link.head_prior for link in self.chain.values()]
        return next((prior for prior in wanted if prior is not None), None)

    @property
    def image_repeats(self) -> ImageRepeats | None:
        """The request of the link that has one."""
        wanted: list[Any] = [link.image_repeats for link in self.chain.values()]
        return next((repeats for repeats in wanted if repeats is not None), None)

    @property
    def class_layers_only(self) -> bool:
        """Whether any link requests it."""
        return any(link.class_layers_only for link in self.chain.values())

    def calibrated(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The changes of all links, one after the other."""
        for link in self.chain.values():
            weight, bias = link.calibrated(weight, bias)
        return weight, bias

    @property
    def rescoring(self) -> Callable[[Tensor], Tensor] | None:
        """The changes of all links that have one, one after the other."""
        changes = [change for link in self.chain.values() if (change := link.rescoring) is not None]
        return (lambda logits: reduce(lambda z, change: change(z), changes, logits)) if changes else None

    def update(self) -> None:
        """Update the running state of every link."""
        for link in self.chain.values():
            link.update()

    def statistics(self) -> dict[str, float | Tensor]:
        """The statistics of every link, as ``link/quantity``."""
        return {
            f"{name}/{key}": value
            for name, link in self.chain.items()
            for key, value in link.statistics().items()
        }
