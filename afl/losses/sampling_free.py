"""Sampling-Free (Chen et al., Is Heuristic Sampling Necessary in Training Deep Object Detectors?, 2019).

All samples are trained on with plain cross-entropy. Only the *size* of the classification gradient is controlled, in three
ways without parameters:

- optimal bias initialisation: a head that gives every element the probability pi has the cross-entropy -N_+ ln(pi) - N_-
  ln(1 - pi), which is least at pi = N_+ / (N_+ + N_-), counted on the data before training;
- guided loss scaling: CE is multiplied by w = L_loc / L_cls, detached, so its value equals that of the box terms and its
  gradient is w (p - y) / N;
- adaptive threshold: detections are kept from a score of pi C upwards, the share of locations that are positive.

Anchors and grids: as in the paper. Heat maps: a negative counts by its scale (1 - Y)^4, its share in the cross-entropy that
pi minimises; a soft positive (objectness) counts by its value as positive and by the rest as negative. L_loc is the
detector's sum of the box terms of this map; without it (None) w is 1. A batch without objects has L_loc = 0 and no gradient,
as in the official code.

Differs from the official code: the bias is counted on part of the training set instead of a whole epoch; the ratio w is that
of the sums over all processes instead of one per process; the divisor is the detector's normaliser (it cancels in w L_cls).
The authors' later rewrite, with frozen ratios and learnt uncertainties, is a different method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from afl.losses.classification_loss import ClassificationLoss
from afl.losses.contract import MapInfo, MapLoss
from afl.losses.distributed import all_reduce_sum
from afl.losses.primitive import scaled_negatives
from afl.losses.sampling import CROSS_ENTROPY, plain_negatives_per_image
from afl.losses.target import ClassificationTarget
from afl.losses.weighting import Weighting


class SamplingFree(ClassificationLoss):
    """Cross-entropy without sampling, scaled to the box terms; a chain of weightings may be put under it.

    Before training, the training loop counts the map's positives and elements (``ElementCounter``), calls
    ``prior_from_data`` and sets the bias of the map's last layer to ln(pi / (1 - pi)).

    Args:
        info: the map; its prior serves until data were counted.
        chain: see ``ClassificationLoss``, without a link that fades the loss in; the method has none.
    """

    prior: Tensor

    def __init__(
        self, info: MapInfo, *, chain: Mapping[str, Callable[[MapInfo], Weighting]] | None = None
    ) -> None:
        super().__init__(info, chain=chain, gamma=0.0, alpha=-1.0)
        fading = [name for name, link in self.chain.items() if link.fades]
        if fading:
            raise ValueError(
                f"the link {fading[0]} of the chain fades the loss in, but sampling_free scales the loss to the box terms; remove one."
            )
        self.register_buffer("prior", torch.tensor(float(info.prior), dtype=torch.float64))
        self._guide: Tensor | None = None

    @property
    def wants_prior(self) -> bool:
        return True

    def prior_from_data(self, positives_per_image: float, elements_per_image: float) -> float:
        """The optimal prior pi, kept for the threshold.

        Args:
            positives_per_image: N_+, mean over images; no positives count as a thousandth of one, so that the bias is
                finite.
            elements_per_image: N_+ + N_-.

        Raises:
            ValueError: there are no elements, or more positives than elements.
        """
        if not 0 <= positives_per_image <= elements_per_image or elements_per_image <= 0:
            raise ValueError(
                f"{positives_per_image} positives of {elements_per_image} elements per image give no prior."
            )
        # Maps of positives alone have no cross-entropy to balance: a half.
        prior = min(max(positives_per_image, 1e-3) / elements_per_image, 0.5)
        self.prior.fill_(prior)
        return prior

    @property
    def score_threshold(self) -> float:
        """pi C, least probability of a detection."""
        return min(float(self.prior) * self.info.num_classes, 1.0)

    def compute(
        self, logits: Tensor, target: ClassificationTarget, normalizer: Tensor, localization: Tensor | None
    ) -> Tensor:
        """The loss; while training in several processes, all of them must call it equally often."""
        loss = super().compute(logits, target, normalizer, localization)
        if localization is None:
            return loss
        both = torch.stack([localization.detach().to(loss), loss.detach()])
        if self.training:
            both = all_reduce_sum(both)
        # A perfect classifier has a loss of 0.
        self._guide = both[0] / both[1].clamp(min=1e-12)
        return loss * self._guide

    def statistics(self) -> dict[str, float | Tensor]:
        """The chain's statistics, the prior and the last w."""
        guide = {} if self._guide is None else {"guide": self._guide}
        return super().statistics() | {"prior": self.prior} | guide


class ElementCounter(MapLoss):
    """Replaces a map's loss while its positives and elements are counted; its loss is 0.

    Args:
        info: the map.
        prepared: the changes that the replaced loss makes to its target, ``MapLoss.prepared``; None for none.

    Attributes:
        counted: (3,) float64 buffer: mass of positives, mass of all elements that take part, images.
    """

    counted: Tensor

    def __init__(
        self, info: MapInfo, prepared: Callable[[ClassificationTarget], ClassificationTarget] | None = None
    ) -> None:
        super().__init__(info)
        self._prepare = prepared or self.prepared
        self.register_buffer("counted", torch.zeros(3, dtype=torch.float64))

    def compute(
        self, logits: Tensor, target: ClassificationTarget, normalizer: Tensor, localization: Tensor | None
    ) -> Tensor:
        self.counted += torch.stack(count_elements(logits.detach(), self._prepare(target)))
        return logits.new_zeros((), dtype=torch.float32)

    def per_image(self) -> tuple[float, float]:
        """Positives and elements per image, over all processes: the arguments of ``prior_from_data``."""
        positives, elements, images = all_reduce_sum(self.counted.clone()).tolist()
        return positives / max(images, 1.0), elements / max(images, 1.0)


@torch.no_grad()
def count_elements(logits: Tensor, target: ClassificationTarget) -> tuple[Tensor, Tensor, Tensor]:
    """Float64 scalars: mass of the positives, mass of positives and negatives, number of images.

    A soft positive is a positive by its value and an element as a whole, a scaled negative an element by its
    scale.
    """
    present = target.is_positive.to(torch.float64)
    positives = (present if target.value is None else present * target.value).sum()
    elements = present.sum() + plain_negatives_per_image(logits, target).sum()
    near = scaled_negatives(logits, target, CROSS_ENTROPY)
    if near is not None:
        elements = elements + torch.where(near.valid, target.negative_scale.double(), 0.0).sum()
    return positives, elements, torch.full_like(elements, target.num_images)
