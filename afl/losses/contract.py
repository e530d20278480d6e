"""The contract between a detector and the loss of one classification map.

A detector builds one loss per map from a ``MapInfo`` and calls it with logits and a sparse target. The training loop
calls ``update`` once per optimiser step and logs ``statistics``. Before training it may set the head's bias
(``wants_prior``, ``prior_from_data``); before evaluation it may lower the score threshold (``score_threshold``).
``MapLoss`` has a default for everything except ``compute``, so a new loss only implements the parts that differ.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from afl.losses.image_repeats import ImageRepeats
from afl.losses.target import ClassificationTarget
from afl.losses.weighting import ElementWeights


@dataclass(frozen=True)
class MapInfo:
    """The description of a classification map from which its loss is built.

    Attributes:
        name: the map's name in its detector, for example ``heat`` or ``top_left``.
        num_classes: C of the map (1 for a class-agnostic objectness).
        instances_per_class: (C,) float, training instances of each class.
        images_per_class: (C,) float, training images with each class.
        prior: probability that a fresh head gives to every element.
        alpha: the head's usual balance of positives and negatives; negative switches it off.
        dense_positives: True on anchor and grid heads (several positives per object), False on heat maps.
        fractal_dimension: computes the (C,) fractal dimension of where the training objects of each class are in the image; None
            where the data set is not at hand.
    """

    name: str
    num_classes: int
    instances_per_class: Tensor
    images_per_class: Tensor
    prior: float
    alpha: float
    dense_positives: bool
    fractal_dimension: Callable[[], Tensor] | None = None


class MapLoss(nn.Module, ABC):
    """Base class of the losses of classification maps.

    A subclass implements ``compute`` and overrides the defaults that do not fit it.

    Args:
        info: the map.

    Attributes:
        info: the map.
        uses_overlap: whether the detector must fill ``target.overlap``.
        seen: soft values (P,) of the last training batch's positives, and the weights of its positives and its gate,
            recorded by the gradient dynamics; None for a loss without such weights.
    """

    uses_overlap: bool = False

    def __init__(self, info: MapInfo) -> None:
        super().__init__()
        self.info = info
        self.seen: tuple[Tensor | None, ElementWeights] | None = None

    def forward(
        self,
        logits: Tensor,
        target: ClassificationTarget,
        normalizer: Tensor,
        localization: Tensor | None = None,
    ) -> Tensor:
        """The loss of one map.

        Args:
            logits: (R, C), any floating type.
            target: the sparse target of the same map.
            normalizer: N, scalar tensor, not zero.
            localization: detached sum of the box terms that belong to this map, scalar; None if it has none.

        Returns:
            Scalar, float32 (float64 for float64 logits).

        Raises:
            ValueError: if logits, target and ``info`` disagree about R or C.
            UndefinedPair: if the loss is not defined on this kind of map.
        """
        classes, expected = self.info.num_classes, (target.num_locations, target.num_classes)
        if logits.shape != expected or target.num_classes != classes:
            raise ValueError(
                f"Map {self.info.name!r}: logits of shape {tuple(logits.shape)}, a target of shape {expected} "
                f"and a loss built for {classes} classes do not fit."
            )
        return self.compute(logits, target, normalizer, localization)

    @abstractmethod
    def compute(
        self, logits: Tensor, target: ClassificationTarget, normalizer: Tensor, localization: Tensor | None
    ) -> Tensor:
        """The loss; ``forward`` has checked the shapes."""

    def prepared(self, target: ClassificationTarget) -> ClassificationTarget:
        """The target that the loss uses, for example without the classes that are not verified in an image."""
        return target

    @property
    def wants_prior(self) -> bool:
        """Whether the head must start at the probability that ``prior_from_data`` returns."""
        return False

    def prior_from_data(self, positives_per_image: float, elements_per_image: float) -> float:
        """Probability at which the head starts, given the mean number of positives and of elements per image."""
        return self.info.prior

    @property
    def score_threshold(self) -> float | None:
        """Highest score threshold that suits the scores this loss teaches; None keeps the detector's own."""
        return None

    @property
    def image_repeats(self) -> ImageRepeats | None:
        """How often training repeats images with rare classes; None leaves that to the data set."""
        return None

    @property
    def class_layers_only(self) -> bool:
        """Whether training starts from a finished run and trains nothing but fresh class layers."""
        return False

    def calibrated(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The last layer of the map as evaluation uses it.

        Args:
            weight: (A C, ...), channel a C + c is of anchor a and class c; bias: (A C,).

        Returns:
            Both, of the same shapes; the default changes nothing.
        """
        return weight, bias

    @property
    def rescoring(self) -> Callable[[Tensor], Tensor] | None:
        """A change of the last layer's logits (B, A C, ...) at evaluation, after ``calibrated``; None changes nothing."""
        return None

    def update(self) -> None:
        """Update the running state; called once per optimiser step. The default has no state."""

    def statistics(self) -> dict[str, float | Tensor]:
        """Numbers for the log: scalars, or (C,) with one per class."""
        return {}
