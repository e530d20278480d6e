"""ExtremeNet's grouping compared with the paper's method, which enumerates all quadruples of the 40 best points of each map."""

from __future__ import annotations

import torch
from torch import Tensor

from afl.benchmarks.harness import Row, take_turns
from detectors.extreme_grouping import BOTTOM, LEFT, RIGHT, TOP, Groups, X, Y, group_extremes

POINTS, THRESHOLD, LIMIT = 40, 0.1, 1000


def measure(quick: bool) -> list[Row]:
    """Measure one image of 512 x 512 with as many objects as a map has peaks: with 80 classes, and with one, the worst case."""
    points = 10 if quick else POINTS
    rows = []
    for classes in (80, 1):
        scores, labels, cells, center = scene(points, classes)
        found = group_extremes(scores, labels, cells, center, threshold=THRESHOLD, limit=LIMIT)
        best, quadruples = enumerate_quadruples(scores[0], labels[0], cells[0], center[0])
        seconds = take_turns(
            {
                "ours": lambda s=scores, n=labels, c=cells, m=center: group_extremes(
                    s, n, c, m, threshold=THRESHOLD, limit=LIMIT
                ),
                "theirs": lambda s=scores, n=labels, c=cells, m=center: enumerate_quadruples(
                    s[0], n[0], c[0], m[0]
                ),
            },
            1 if quick else 5,
        )
        size = f"{points} points of each side, {classes} class{'es' if classes > 1 else ''}"
        rows += [
            Row.speed_up(
                f"ExtremeNet grouping, quadruples looked at, {size}",
                max(found.candidates, 1),
                points**4,
                unit="",
                budget=None if quick else 100.0,
                note="enumeration",
            ),  # fmt: skip
            Row.speed_up(
                f"ExtremeNet grouping, one image, {size}", **seconds, note="enumeration, vectorised"
            ),
            Row(
                f"ExtremeNet grouping, boxes that differ from enumeration, {size}",
                ours=int((found.scores > 0).sum()),
                theirs=len(best),
                unit="",
                ratio=differing(found, best, quadruples),
                budget=0.0,
                at_most=True,
                note="the columns are boxes found",
            ),
        ]
    return rows


def scene(points: int, classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Extreme points of random objects, and a centre map with low scores except at their centres."""
    random = torch.Generator().manual_seed(classes)
    size = torch.randint(4, 30, (points, 2), generator=random)
    corner = (torch.rand(points, 2, generator=random) * (127 - size)).long()
    far = corner + size
    share = torch.rand(points, 4, generator=random)
    x = corner[:, X : X + 1] + (share * size[:, X : X + 1]).long()
    y = corner[:, Y : Y + 1] + (share * size[:, Y : Y + 1]).long()
    sides = {
        TOP: torch.stack([x[:, 0], corner[:, Y]], 1),
        LEFT: torch.stack([corner[:, X], y[:, 1]], 1),
        BOTTOM: torch.stack([x[:, 2], far[:, Y]], 1),
        RIGHT: torch.stack([far[:, X], y[:, 3]], 1),
    }
    cells = torch.stack([sides[side] for side in range(4)])[None]
    label = torch.randint(classes, (points,), generator=random)
    center = 0.05 * torch.rand(1, classes, 128, 128, generator=random)
    middle = torch.div(corner + far, 2, rounding_mode="floor")
    center[0, label, middle[:, Y], middle[:, X]] = 0.9
    scores = 0.2 + 0.8 * torch.rand(1, 4, points, generator=random)
    return scores, label.expand(1, 4, -1), cells, center


def enumerate_quadruples(
    scores: Tensor, labels: Tensor, cells: Tensor, center: Tensor
) -> tuple[Tensor, Tensor]:
    """Scores (N,) and points (N, 4) of the best quadruples, by enumeration of all quadruples (ExtremeNet, 4.2)."""
    count = scores.shape[1]
    every = torch.cartesian_prod(*(torch.arange(count),) * 4)
    side = torch.arange(4)
    place, label, score = cells[side, every], labels[side, every], scores[side, every]
    x, y = place[..., X], place[..., Y]
    fits = (label == label[:, :1]).all(1) & (score >= THRESHOLD).all(1)
    fits &= (y[:, TOP] == y.amin(1)) & (y[:, BOTTOM] == y.amax(1))
    fits &= (x[:, LEFT] == x.amin(1)) & (x[:, RIGHT] == x.amax(1))
    row = torch.div(y[:, TOP] + y[:, BOTTOM], 2, rounding_mode="floor")
    column = torch.div(x[:, LEFT] + x[:, RIGHT], 2, rounding_mode="floor")
    middle = center[label[:, 0], row, column]
    fits &= middle >= THRESHOLD
    total = ((score.sum(1) + 2 * middle) / 6)[fits]
    best, order = total.topk(min(LIMIT, len(total)))
    return best, every[fits][order]


def differing(found: Groups, best: Tensor, quadruples: Tensor) -> int:
    """The number of boxes that only one of the two sides has."""
    count = int((found.scores[0] > 0).sum())
    mine = {tuple(points) for points in found.points[0, :count].tolist()}
    return len(mine ^ {tuple(points) for points in quadruples.tolist()})
