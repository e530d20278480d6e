"""PISA: attention on the positives that are localised best.

Cao et al., Prime Sample Attention in Object Detection, CVPR 2020. Its part for positives, importance-based
sample reweighting (ISR-P):

    r_i  = hierarchical local rank of positive i in its class, by the IoU of its predicted box
    u_i  = (n_max - r_i) / n_max             n_max: positives of the class that has most of them in the batch
    w_i  = ((1 - bias) u_i + bias)^k
    w'_i = w_i sum_j L_j / sum_j w_j L_j     so the loss of all positives keeps its sum

The rank is hierarchical: the positives of every *object* are ranked among themselves; then those of a
*class* are ordered by that local rank, and by IoU where it is the same. First come the best positives of
all objects, then the second-best, and so on. Defaults: k = 2, bias = 0 of the official RetinaNet
configuration, on top of the head's own focal loss.

Anchor heads: as published. Heat maps: an object has one peak, so every local rank is 0, and only the order
within the class remains. Heads without a box at their positives (CornerNet, ExtremeNet) have nothing to
rank by: ``UndefinedPair``.

Differs from the official code: the weight is on the positive element alone, where that code also weighs the
negatives of the other classes at its location. As there, ranks and sums are those of one process's batch.
PISA's other two parts do not apply here: the reweighting of negatives is for two-stage detectors, and CARL is a
box loss.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from afl.losses.contract import MapInfo
from afl.losses.errors import UndefinedPair, required_overlap
from afl.losses.primitive import positives
from afl.losses.target import ClassificationTarget
from afl.losses.weighting import ElementWeights, Weighting, positive_logits


class PrimeSampleAttention(Weighting):
    """Weighs positives by the rank of their predicted boxes; their sum under the links before it is kept.

    Args:
        info: the map.
        k: exponent, not negative; 0 weighs all alike.
        bias: in [0, 1], least importance.
    """

    uses_overlap = True

    def __init__(self, info: MapInfo, *, k: float = 2.0, bias: float = 0.0) -> None:
        super().__init__()
        if k < 0 or not 0 <= bias <= 1:
            raise ValueError(f"k is {k} and bias {bias}, but k must not be negative and bias lie in [0, 1].")
        self.k, self.bias = k, bias
        self.name, self.num_classes = info.name, info.num_classes
        self.dense_positives = info.dense_positives

    def forward(
        self, logits: Tensor, target: ClassificationTarget, weights: ElementWeights
    ) -> ElementWeights:
        overlap = required_overlap(target, "pisa", self.name)
        owner = target.object
        if owner is None:
            if self.dense_positives:
                raise UndefinedPair(
                    f"pisa ranks the positives of one object, and the map {self.name!r} does not say which "
                    "object each positive belongs to."
                )
            owner = torch.arange(len(overlap), device=overlap.device)
        hits = positives(positive_logits(logits, target), target, replace(weights, gate=None))
        if hits is None:
            return weights
        label = torch.where(hits.valid, target.positive_class, self.num_classes)
        rank = hierarchical_local_rank(overlap, torch.where(hits.valid, owner, -1), label)
        count = torch.zeros(self.num_classes + 1, dtype=torch.int64, device=label.device)
        count.index_add_(0, label, torch.ones_like(label))
        most = count[:-1].max().clamp(min=1).to(hits.loss.dtype)
        weight = ((1.0 - self.bias) * (most - rank).clamp(min=0) / most + self.bias) ** self.k
        loss = torch.where(hits.valid, hits.weight * hits.alpha * hits.loss, 0.0)
        kept = (weight * loss).sum()
        ratio = torch.where(kept > 0, loss.sum() / torch.where(kept > 0, kept, 1.0), 1.0)
        return weights.times(positive=weight * ratio)


def hierarchical_local_rank(quality: Tensor, owner: Tensor, label: Tensor) -> Tensor:
    """Place of each of P positives within its class: by place within its object, then by quality, from 0.

    Args:
        quality: (P,), more is better.
        owner: (P,) int64 object.
        label: (P,) int64 class; all positives of an object have the same.

    Returns:
        (P,) int64.
    """
    order = quality.argsort(descending=True, stable=True)
    local = _place(owner, order)
    return _place(label, order[local[order].argsort(stable=True)])


def _place(group: Tensor, order: Tensor) -> Tensor:
    """(P,) rank of each entry within its ``group`` (P,), in the order of the permutation ``order``."""
    sorted_group, permutation = group[order].sort(stable=True)
    arranged = order[permutation]
    start = torch.searchsorted(sorted_group, sorted_group)
    place = torch.empty_like(arranged)
    place[arranged] = torch.arange(len(order), device=order.device) - start
    return place
