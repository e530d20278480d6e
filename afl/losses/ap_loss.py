"""AP loss (Chen et al., Towards Accurate One-Stage Object Detection with AP-Loss, CVPR 2019, section 3).

With the soft step H(x) = clip(x / (2 delta) + 1/2, 0, 1), for a positive i and a negative j,

    L_ij = H(z_j - z_i) / (1 + sum of H(z_k - z_i) over other positives k and all negatives k)
    loss = (1 / N) sum over i and j of L_ij = (1 / N) sum over i of (1 - precision_i)

that is 1 - AP of the ranking. Its gradient is *assigned*, not derived (the paper's error-driven update):
the desired value of every L_ij is 0, so negative j gets +sum_i L_ij / N and positive i gets -sum_j L_ij / N. Both sides
push with the same total, at most 1, however many negatives there are. AP is interpolated, as in the official
code: precision_i becomes the largest precision at or below i's score, and its L_ij shrink with it. Default:
delta = 1, of the official code.

Anchors and grids: the whole batch and all classes are one ranking, as in the official code. Heat maps: a
negative counts by its scale (1 - Y)^4 in the sums and in its gradient. Soft positives (objectness): value y
makes an element a positive of mass y and, for the others, a rival of mass 1 - y, so with hard targets nothing
changes. Without positives there is nothing to rank: the loss is 0.

Normaliser: |P| in the paper. The detectors' normaliser is the mean of |P| over processes, so on one process
it is the same; on several each ranks its own part of the batch, as in the official code.

Differs from the official code, which loops over positives: sums of H are piecewise linear in the logits, so
one pass collects the negatives between the 2 |P| bends, and a second pass reads their gradients from a table.
Time grows with elements x log |P|; memory is a gradient and, on a CPU, an int32 of its size; sums are in double precision. A ranking
does not constrain probabilities: scores stay near the prior, and the official detector keeps every detection
above it (``score_threshold``).
"""

from __future__ import annotations

from functools import partial

import torch
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
from afl.losses.sampling import on_host
from afl.losses.target import ClassificationTarget


class APLoss(MapLoss):
    """1 - interpolated average precision of a map, with the assigned gradient.

    Args:
        info: the map.
        delta: half width of the step H, in logits, positive.
    """

    def __init__(self, info: MapInfo, *, delta: float = 1.0) -> None:
        super().__init__(info)
        if delta <= 0:
            raise ValueError(f"delta is {delta}, but the step needs a width.")
        self.delta = float(delta)
        self._last: Tensor | None = None

    def compute(
        self, logits: Tensor, target: ClassificationTarget, normalizer: Tensor, localization: Tensor | None
    ) -> Tensor:
        compute = partial(
            _loss_and_gradient, target=target, normalizer=normalizer.detach().double(), delta=self.delta
        )
        loss = loss_with_gradient(logits, compute)
        if self.training:
            self._last = loss.detach()
        return loss

    @property
    def score_threshold(self) -> float:
        """The official detector's."""
        return 0.01

    def statistics(self) -> dict[str, float | Tensor]:
        return {} if self._last is None else {"precision": 1.0 - self._last}


def _loss_and_gradient(
    logits: Tensor, differentiable: bool, *, target: ClassificationTarget, normalizer: Tensor, delta: float
) -> tuple[Tensor, Tensor | None]:
    positives = listed_positives(logits, target)
    if not positives.index.numel() or not logits.numel():
        zero = torch.zeros_like(logits, dtype=gradient_type(logits.dtype)) if differentiable else None
        return logits.new_zeros((), dtype=computing_type(logits.dtype)), zero
    rivals = listed_rivals(logits, target, positives)
    bends, order = torch.cat([positives.logit - delta, positives.logit + delta]).sort()

    kernels = kernels_for(logits, target)
    negatives = _Blocks(logits, target, differentiable) if kernels is None else kernels
    ahead = negatives.collect(bends)
    _collect(ahead, bends, rivals.logit, rivals.mass)
    same = torch.zeros_like(ahead)
    _collect(same, bends, positives.logit, positives.mass)

    # H of an element against itself is a half: it is its own first place, and not its own rival.
    itself_as_rival = 0.0 if target.value is None else 0.5 * (1.0 - positives.mass)
    right = 1.0 + _steps_above(same, bends, order, delta) - 0.5 * positives.mass
    wrong = (_steps_above(ahead, bends, order, delta) - itself_as_rival).clamp(min=0.0)
    precision = right / (right + wrong)
    rising = positives.logit.argsort()
    best = torch.empty_like(precision)
    best[rising] = torch.where(positives.mass > 0, precision, 0.0)[rising].cummax(0).values
    shrink = torch.where(best > precision, (1.0 - best) / (1.0 - precision), 1.0)
    loss = (positives.mass * (1.0 - best)).sum() / normalizer

    gradient = None
    if differentiable:
        strength = positives.mass * shrink / (right + wrong) / normalizer
        slope, intercept = _step_table(strength, bends, order, delta)
        gradient = negatives.piecewise_linear(bends, slope, intercept)
        push = _steps_below(rivals.logit, _place(bends, rivals.logit), slope, intercept)
        if target.value is not None:
            push[len(push) - len(strength) :] -= 0.5 * strength
        add_at(gradient, rivals, push * rivals.mass)
        add_at(gradient, positives, -strength * wrong)
    return loss.to(computing_type(logits.dtype)), gradient


class _Blocks:
    """The passes over the plain negatives by torch, in blocks of rows.

    Args:
        logits: (R, C); target: of the map.
        remember: whether ``piecewise_linear`` will follow ``collect``, with the same bends.
    """

    def __init__(self, logits: Tensor, target: ClassificationTarget, remember: bool) -> None:
        self.logits, self.plain, self.remember = logits, plain_negatives(target), remember
        self.places: list[Tensor] = []

    def collect(self, bends: Tensor) -> Tensor:
        """Numbers and sums of logits of the plain negatives between K bends, as a (2, K + 1) float64 table."""
        table = torch.zeros(2, len(bends) + 1, dtype=torch.float64, device=bends.device)
        for rows in row_blocks(self.logits):
            _, z, mass = _candidates(self.logits[rows], self.plain[rows], bends[0])
            place = _collect(table, bends, z, mass)
            if self.remember:
                # The search is the most expensive part, and the second pass needs its result.
                self.places.append(place)
        return table

    def piecewise_linear(self, bends: Tensor, slope: Tensor, intercept: Tensor) -> Tensor:
        """slope z + intercept of the interval that holds z, at least 0, at plain negatives; 0 elsewhere."""
        gradient = torch.zeros_like(self.logits, dtype=gradient_type(self.logits.dtype))
        for rows, place in zip(row_blocks(self.logits), self.places, strict=True):
            index, z, mass = _candidates(self.logits[rows], self.plain[rows], bends[0])
            push = _steps_below(z, place, slope, intercept).mul_(mass)
            gradient[rows].view(-1)[index] = push.to(gradient.dtype)
        return gradient


def _candidates(logits: Tensor, plain: Tensor, lowest: Tensor) -> tuple[Tensor | slice, Tensor, Tensor]:
    """Flat positions, float64 logits and masses of a block's plain negatives that any step H may reach.

    On a CPU, where looking is free, they alone; elsewhere all elements, the others with mass 0.
    """
    z = logits.double()
    index: Tensor | slice = slice(None)
    if on_host(logits):
        # Not ">=", which would hide a NaN.
        index = (~(z < lowest) & plain).view(-1).nonzero().squeeze(1)
    return index, z.reshape(-1)[index], plain.reshape(-1)[index].double()


def _collect(table: Tensor, bends: Tensor, z: Tensor, mass: Tensor) -> Tensor:
    """Add mass and mass times logit of elements to the (2, K + 1) table of the intervals between K bends.

    Returns:
        The interval of each element, int32.
    """
    place = _place(bends, z)
    for row, values in zip(table, (mass, mass * z), strict=True):
        row.index_add_(0, place, values)
    return place


def _place(bends: Tensor, z: Tensor) -> Tensor:
    return torch.searchsorted(bends, z, right=True, out_int32=True)


def _steps_above(table: Tensor, bends: Tensor, order: Tensor, delta: float) -> Tensor:
    """(P,) sums over the collected elements j of mass_j H(z_j - z_i), for every positive i."""
    above = table.flip(1).cumsum(1).flip(1)[:, 1:]
    # Sum of mass (z - bend) over the elements above each bend; H is the difference of two such ramps.
    ramp = torch.empty_like(bends)
    ramp[order] = above[1] - bends * above[0]
    lower, upper = ramp.chunk(2)
    return ((lower - upper) / (2.0 * delta)).clamp(min=0.0)


def _step_table(strength: Tensor, bends: Tensor, order: Tensor, delta: float) -> tuple[Tensor, Tensor]:
    """(K + 1,) slope and intercept, between K bends, of the sum over positives i of strength_i H(z - z_i)."""
    change = torch.cat([strength, -strength])[order] / (2.0 * delta)
    both = torch.stack([change, -change * bends]).cumsum(1)
    slope, intercept = torch.cat([both.new_zeros(2, 1), both], 1)
    return slope, intercept


def _steps_below(z: Tensor, place: Tensor, slope: Tensor, intercept: Tensor) -> Tensor:
    """(K,) values of that sum at logits ``z`` (K,) in the intervals ``place`` (K,)."""
    return torch.addcmul(intercept.index_select(0, place), slope.index_select(0, place), z).clamp_(min=0.0)
