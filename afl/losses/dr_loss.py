"""DR loss (Qian et al., DR Loss: Improving Object Detection by Distributional Ranking, CVPR 2020, section 3).

In every image the worst of the positives are ranked above the worst of the negatives, by the expected
probability under a distribution that leans towards the hard ones:

    P_- = sum_j q_j p_j,  q = softmax(p / lambda_-) over negatives
    P_+ = sum_i q_i p_i,  q = softmax(-p / lambda_+) over positives, 1 where an image has none
    loss = mean over images of (tau / L) ln(1 + exp(L (P_- - P_+ + margin)))

Defaults, of the official code: lambda_+ = 1, lambda_- = 0.1 / ln 3.5, L = 6, tau = 4, margin = 0.5. It is
derived through q as well, as there: an element that is easier than P_- by more than lambda_- is pushed the
other way, a little, because it lowers the expectation.

Probabilities and not logits are compared, so gradients carry p (1 - p): a head that starts at a prior of 0.01
would barely move. The method needs a prior of 0.5 (``wants_prior``).

Anchors and grids: as above. Heat maps: a negative's place in q is multiplied by its scale (1 - Y)^4. Soft
positives (objectness): value y multiplies an element's place among the positives, 1 - y its place among the
negatives. An image with neither positives nor negatives on the map has loss 0; without negatives P_- is 0.

Normaliser: the number of images, as in the paper, because each image counts once; the given
number of positives is not used. As every term is at most tau (1 + margin) or so, that has the size of a loss
per positive.

Differs from the official code: a ranking per image, as in the paper, where the code takes all images of a
device together; RetinaNet's band of ignored anchors, IoU 0.4 to 0.5, stays, where the code makes them
negatives.
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from afl.losses.contract import MapInfo, MapLoss
from afl.losses.fused import gradient_type
from afl.losses.gradient import computing_type
from afl.losses.ranking import (
    add_at,
    kernels_for,
    listed_positives,
    listed_rivals,
    loss_with_gradient,
    plain_negatives,
    row_blocks,
)
from afl.losses.target import ClassificationTarget


class DRLoss(MapLoss):
    """Distributional ranking of an image's positives above its negatives.

    Args:
        info: the map.
        positive_lambda, negative_lambda: temperatures of the distributions, positive; towards 0 only the worst counts.
        sharpness: L of the logistic loss, positive.
        tau: factor of the loss, positive.
        margin: by how much P_+ should exceed P_-.
        prior: probability at which the head should start, strictly between 0 and 1.
    """

    def __init__(
        self,
        info: MapInfo,
        *,
        positive_lambda: float = 1.0,
        negative_lambda: float = 0.1 / math.log(3.5),
        sharpness: float = 6.0,
        tau: float = 4.0,
        margin: float = 0.5,
        prior: float = 0.5,
    ) -> None:
        super().__init__(info)
        if min(positive_lambda, negative_lambda, sharpness, tau) <= 0 or not 0 < prior < 1:
            raise ValueError(
                f"positive_lambda {positive_lambda}, negative_lambda {negative_lambda}, sharpness {sharpness} "
                f"and tau {tau} must be positive, and prior {prior} lie between 0 and 1."
            )
        self.prior = float(prior)
        self.options = {
            "positive_lambda": float(positive_lambda),
            "negative_lambda": float(negative_lambda),
            "sharpness": float(sharpness),
            "tau": float(tau),
            "margin": float(margin),
        }

    @property
    def wants_prior(self) -> bool:
        return True

    def prior_from_data(self, positives_per_image: float, elements_per_image: float) -> float:
        """The method's own prior; the data play no part."""
        return self.prior

    def compute(
        self, logits: Tensor, target: ClassificationTarget, normalizer: Tensor, localization: Tensor | None
    ) -> Tensor:
        """The loss; the normaliser is not used."""
        return loss_with_gradient(logits, partial(_loss_and_gradient, target=target, **self.options))


def _loss_and_gradient(
    logits: Tensor,
    differentiable: bool,
    *,
    target: ClassificationTarget,
    positive_lambda: float,
    negative_lambda: float,
    sharpness: float,
    tau: float,
    margin: float,
) -> tuple[Tensor, Tensor | None]:
    dtype = computing_type(logits.dtype)
    positives = listed_positives(logits, target)
    rivals = listed_rivals(logits, target, positives)
    kernels = kernels_for(logits, target)
    negatives = _Blocks(logits, target) if kernels is None else kernels

    # Sums over each image's elements of mass e and mass e p; e = exp((p - 1) / lambda_-) cannot overflow.
    negative = negatives.tilted_sums(negative_lambda)
    positive = torch.zeros_like(negative)
    parts = ((positive, positives, -positive_lambda), (negative, rivals, negative_lambda))
    for sums, elements, temperature in parts:
        p = torch.sigmoid(elements.logit)
        e = elements.mass * _tilt(p, temperature)
        sums.index_add_(1, elements.image, torch.stack([e, e * p]))

    # Not "> 0", which would hide a NaN.
    has_positive, has_negative = positive[0] != 0, negative[0] != 0
    high = torch.where(has_positive, positive[1] / positive[0], 1.0)
    low = torch.where(has_negative, negative[1] / negative[0], 0.0)
    gap = torch.where(has_positive | has_negative, sharpness * (low - high + margin), -torch.inf)
    loss = tau / sharpness * F.softplus(gap, threshold=50.0).sum() / max(target.num_images, 1)
    if not differentiable:
        return loss.to(dtype), None

    push = tau * torch.sigmoid(gap) / max(target.num_images, 1)
    pull_down = torch.where(has_negative, push / negative[0], 0.0)
    gradient = negatives.tilted_gradient(negative_lambda, pull_down, low)
    pull_up = torch.where(has_positive, -push / positive[0], 0.0)
    sides = ((positives, pull_up, high, -positive_lambda), (rivals, pull_down, low, negative_lambda))
    for elements, pull, mean, temperature in sides:
        p, image = torch.sigmoid(elements.logit), elements.image
        slope = elements.mass * pull[image] * _tilt(p, temperature) * (1.0 + (p - mean[image]) / temperature)
        add_at(gradient, elements, slope * p * torch.sigmoid(-elements.logit))
    return loss.to(dtype), gradient


class _Blocks:
    """The passes over the plain negatives by torch, in blocks of rows.

    Args:
        logits: (R, C); target: of the map.
    """

    def __init__(self, logits: Tensor, target: ClassificationTarget) -> None:
        self.logits, self.target, self.plain = logits, target, plain_negatives(target)
        self.dtype = computing_type(logits.dtype)

    def tilted_sums(self, temperature: float) -> Tensor:
        """Sums of e and e p over each image's plain negatives, e = exp((p - 1) / temperature): (2, B) float64."""
        total = torch.zeros(2, self.target.num_images, dtype=torch.float64, device=self.logits.device)
        for rows in row_blocks(self.logits):
            p = torch.sigmoid(self._logits(rows))
            e = torch.exp((p - 1.0) / temperature).mul_(self.plain[rows])
            sums = torch.stack([e.sum(1, dtype=torch.float64), e.mul_(p).sum(1, dtype=torch.float64)])
            total.index_add_(1, self.target.image[rows], sums)
        return total

    def tilted_gradient(self, temperature: float, pull: Tensor, mean: Tensor) -> Tensor:
        """pull e (1 + (p - mean) / temperature) p (1 - p) at plain negatives, from (B,) of each image; 0 elsewhere."""
        gradient = torch.empty_like(self.logits, dtype=gradient_type(self.logits.dtype))
        for rows in row_blocks(self.logits):
            z, image = self._logits(rows), self.target.image[rows]
            p = torch.sigmoid(z)
            slope = torch.exp((p - 1.0) / temperature).mul_(pull[image].to(self.dtype).unsqueeze(1))
            slope *= 1.0 + (p - mean[image].to(self.dtype).unsqueeze(1)) / temperature
            gradient[rows] = slope.mul_(p).mul_(torch.sigmoid(-z)).mul_(self.plain[rows])
        return gradient

    def _logits(self, rows: slice) -> Tensor:
        """In the computing type, 0 where there is no plain negative: NaN would pass through a mass of 0."""
        return torch.where(self.plain[rows], self.logits[rows].to(self.dtype), 0.0)


def _tilt(p: Tensor, temperature: float) -> Tensor:
    """exp(p / temperature), scaled to be at most 1; negative temperatures lean to small p."""
    return torch.exp((p - 1.0 if temperature > 0 else p) / temperature)
