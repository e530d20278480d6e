"""Groups extreme points and centres of score maps into boxes (Zhou et al., ExtremeNet, CVPR 2019, 4.2 to 4.4).

A box consists of a top, a left, a bottom and a right point of one class, in positions that form a box, and of a centre that the network
also detects. Trying all quadruples of the 40 best peaks of each map takes 2.56 million look-ups per image. This module starts from the
centre map instead: a (top, bottom) pair determines the row of the centre, and a (left, right) pair its column. Pairs of both kinds are
joined through the centre cells above the threshold, and other combinations are never stored. All images of a batch share the same joins.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TOP, LEFT, BOTTOM, RIGHT = range(4)
X, Y = 0, 1

# Largest number of stored quadruples. It bounds the memory for an untrained network, whose scores all exceed the threshold.
_AT_ONCE = 1 << 21


@dataclass(frozen=True)
class Groups:
    """Quadruples of extreme points, at most N per image, in descending order of score.

    Attributes:
        scores: (B, N), 0 at padding.
        labels: (B, N) int64.
        points: (B, N, 4) int64, positions of top, left, bottom and right in the lists of peaks.
        candidates: number of quadruples of the whole batch that were examined.
    """

    scores: Tensor
    labels: Tensor
    points: Tensor
    candidates: int


def aggregate_edges(heat: Tensor, dim: int, weight: float, floor: float = 0.0) -> Tensor:
    """Strengthen peaks of an edge that has no single extreme point (ExtremeNet, 4.4).

    Each cell receives ``weight`` times the sum of the monotonically increasing runs that end at it, from both sides along ``dim``:
    the row for top and bottom points, the column for left and right points.

    Args:
        heat: (B, C, H, W) non-negative scores.
        floor: lines in which no cell can reach this score are not changed; most classes have no point in most lines.
    """
    lines = heat.movedim(dim, -1)
    shape = lines.shape
    lines = lines.reshape(-1, shape[-1])
    # The sum of both runs is at most the sum of the other cells of the line; the margin covers rounding.
    best, total = lines.amax(1), lines.sum(1)
    active = (best + weight * (total - best) >= 0.999 * floor).nonzero().flatten()
    chosen = lines[active]
    runs = _rising_run(chosen) + _rising_run(chosen.flip(-1)).flip(-1)
    return lines.index_copy(0, active, chosen + weight * runs).view(shape).movedim(-1, dim)


def _rising_run(lines: Tensor) -> Tensor:
    """(N, L): for each cell, the sum of the preceding cells since the values last decreased."""
    zero = torch.zeros_like(lines[:, :1])
    before = torch.cat([zero, lines[:, :-1].cumsum(1)], 1)
    falls = torch.cat([zero.bool(), lines[:, 1:] < lines[:, :-1]], 1)
    # Cumulative sums of non-negative values never decrease, so the latest restart is the largest one.
    return before - torch.where(falls, before, 0.0).cummax(1).values


def group_extremes(
    scores: Tensor, labels: Tensor, cells: Tensor, center: Tensor, *, threshold: float, limit: int
) -> Groups:
    """Find quadruples of peaks that form a box around a centre.

    A quadruple is kept if all of these hold: its points have one class and scores of at least ``threshold``; no other point is above
    the top point, below the bottom point, left of the left point or right of the right point; the centre cell has a score of at
    least ``threshold``. The centre cell is the rounded-down middle of the left and right columns and of the top and bottom rows. The
    score of a quadruple is (top + left + bottom + right + 2 centre) / 6.

    Args:
        scores, labels: (B, 4, K) of the best peaks of the top, left, bottom and right maps.
        cells: (B, 4, K, 2) int64 column, row.
        center: (B, C, H, W) scores.
        limit: largest number of quadruples per image; the best ones are kept.
    """
    usable = scores >= threshold
    vertical = _Pairs.of(TOP, BOTTOM, Y, usable, labels, cells)
    horizontal = _Pairs.of(LEFT, RIGHT, X, usable, labels, cells)
    classes, _, width = center.shape[1:]

    # Link every (top, bottom) pair with every centre cell of its row that exceeds the threshold.
    rows = center[vertical.image, vertical.label, vertical.middle]
    pair, column = (rows >= threshold).nonzero(as_tuple=True)
    center_scores = rows[pair, column]
    # Join every link with every (left, right) pair that has the same centre, identified by the same key.
    key = (vertical.image[pair] * classes + vertical.label[pair]) * width + column
    known, order = ((horizontal.image * classes + horizontal.label) * width + horizontal.middle).sort()
    first, last = torch.searchsorted(known, key), torch.searchsorted(known, key, right=True)
    end = (last - first).cumsum(0)
    candidates = int(end[-1]) if len(end) else 0

    found = []
    for piece in range(0, candidates, _AT_ONCE):
        number = torch.arange(piece, min(piece + _AT_ONCE, candidates), device=scores.device)
        link = torch.searchsorted(end, number, right=True)
        partner = order[last[link] - (end[link] - number)]
        top_bottom, image = pair[link], vertical.image[pair[link]]
        points = torch.stack(
            [
                vertical.first[top_bottom],
                horizontal.first[partner],
                vertical.second[top_bottom],
                horizontal.second[partner],
            ],
            1,
        )
        sides = torch.arange(4, device=scores.device)
        ordered = _is_box(cells[image.unsqueeze(1), sides, points])
        image, points, link = image[ordered], points[ordered], link[ordered]
        score = (scores[image.unsqueeze(1), sides, points].sum(1) + 2 * center_scores[link]) / 6
        found.append((image, score, vertical.label[pair[link]], points))
    if not found:
        empty = labels.new_zeros(len(labels), 0)
        return Groups(
            scores.new_zeros(len(labels), 0), empty, empty.unsqueeze(-1).expand(-1, -1, 4), candidates
        )
    image, score, label, points = (torch.cat(part) for part in zip(*found, strict=True))
    return Groups(*_best_of_each_image(image, score, label, points, len(labels), limit), candidates)


@dataclass(frozen=True)
class _Pairs:
    """P pairs of opposite points: (P,) image, positions of both in their lists, class, and the middle between them."""

    image: Tensor
    first: Tensor
    second: Tensor
    label: Tensor
    middle: Tensor

    @classmethod
    def of(cls, one: int, other: int, axis: int, usable: Tensor, labels: Tensor, cells: Tensor) -> _Pairs:
        """Pair usable points of one class in which the first point is not after the second along the axis."""
        before, after = cells[:, one, :, axis].unsqueeze(2), cells[:, other, :, axis].unsqueeze(1)
        fits = (
            usable[:, one].unsqueeze(2)
            & usable[:, other].unsqueeze(1)
            & (labels[:, one].unsqueeze(2) == labels[:, other].unsqueeze(1))
            & (before <= after)
        )
        image, first, second = fits.nonzero(as_tuple=True)
        middle = torch.div(
            cells[image, one, first, axis] + cells[image, other, second, axis], 2, rounding_mode="floor"
        )
        return cls(image, first, second, labels[image, one, first], middle)


def _is_box(cells: Tensor) -> Tensor:
    """(P,) bool: whether each of the cells (P, 4, 2) of top, left, bottom and right is the extreme of its side."""
    low, high = cells.amin(1), cells.amax(1)
    return (
        (cells[:, TOP, Y] == low[:, Y])
        & (cells[:, LEFT, X] == low[:, X])
        & (cells[:, BOTTOM, Y] == high[:, Y])
        & (cells[:, RIGHT, X] == high[:, X])
    )


def _best_of_each_image(
    image: Tensor, score: Tensor, label: Tensor, points: Tensor, batch: int, limit: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Convert flat lists to padded ones: scores (B, N) in descending order, labels (B, N), points (B, N, 4)."""
    order = score.argsort(descending=True)
    order = order[image[order].argsort(stable=True)]
    image = image[order]
    counts = torch.bincount(image, minlength=batch)
    place = torch.arange(len(image), device=image.device) - (counts.cumsum(0) - counts)[image]
    kept = place < limit
    image, place, order = image[kept], place[kept], order[kept]
    size = min(limit, int(counts.max()))
    scores = score.new_zeros(batch, size).index_put((image, place), score[order])
    labels = label.new_zeros(batch, size).index_put((image, place), label[order])
    return scores, labels, points.new_zeros(batch, size, 4).index_put((image, place), points[order])


def suppress_ghosts(
    boxes: Tensor, scores: Tensor, labels: Tensor, *, factor: float = 3.0, min_score: float = 0.2
) -> Tensor:
    """Halve the scores of boxes that combine points of several objects (ExtremeNet, 4.3).

    Three equal objects in a row produce a false box around all three, centred on the middle one. A box with a score above
    ``min_score`` is a ghost if the scores of the boxes of its class inside it, including itself, sum to more than ``factor`` times
    its own score.

    Args:
        boxes: (B, N, 4) xyxy; scores: (B, N), 0 at padding; labels: (B, N).

    Returns:
        (B, N) scores, in the order of the boxes.
    """
    outer, inner = boxes.unsqueeze(2), boxes.unsqueeze(1)
    inside = (inner[..., :2] >= outer[..., :2]).all(-1) & (inner[..., 2:] <= outer[..., 2:]).all(-1)
    inside &= labels.unsqueeze(2) == labels.unsqueeze(1)
    total = (inside * scores.unsqueeze(1)).sum(2)
    return torch.where((scores > min_score) & (total > factor * scores), scores / 2, scores)
