"""Seesaw loss between the classes of one object.

Wang et al., Seesaw Loss for Long-Tailed Instance Segmentation, CVPR 2021. For a sample of class i, class j
competes in the paper's softmax with the factor

    S_ij = M_ij C_ij
    M_ij = min(1, (N_j / N_i)^p)            mitigation: a rarer class is pushed down less; N samples so far
    C_ij = max(1, (sigma_j / sigma_i)^q)    compensation: unless it is mistaken for i; sigma_i at least eps

that is, ln S_ij is added to the logit z_j. In a sigmoid head classes compete only in that a positive of
class i is a negative of all others. The same shift there gives -ln(1 - sigmoid(z_j + ln S_ij)), whose
gradient is that of cross-entropy times

    W_ij = S_ij / (1 - p_j + S_ij p_j)

which is S_ij where p_j is small and never makes a gradient larger than 1 (S_ij alone can be 10^4). W_ij is
the weight here, on the negatives of class j at a positive of class i; all others keep weight 1, like the
paper's objectness branch. Defaults of the official code: p = 0.8, q = 2, eps = 0.01. On top of the head's
own focal loss, because the paper leaves most of the background to a first stage, which a dense head does
not have; ``gamma: 0`` and ``alpha: -1`` give cross-entropy.

Anchor heads: at positive locations. ObjectBox's class map has no other locations. Heat maps: at peaks, one sample per
object; the pixels around a peak belong to no object and keep weight 1, so the effect is small. If two objects share a
pixel, the larger weight applies. Not defined on a map with one class: ``UndefinedPair``.

Differs from the official code: sigmoid in the place of softmax, and p_j in that of sigma_j; N is summed
over ranks, and does not count the current step.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from afl.losses.contract import MapInfo
from afl.losses.distributed import all_reduce_sum
from afl.losses.errors import UndefinedPair
from afl.losses.fused import block_rows
from afl.losses.gradient import computing_type
from afl.losses.target import ClassificationTarget
from afl.losses.weighting import ElementWeights, Weighting

# Elements of a block on a CPU.
_BLOCK = 1 << 16


class Seesaw(Weighting):
    """Weights the negatives of the other classes at the locations of an object.

    It keeps one weight per element of the map.

    Args:
        info: the map.
        p, q: exponents of mitigation and compensation, not negative; 0 switches one off.
        eps: smallest probability of the right class that compensation divides by.
        single_class: treatment of a map with one class: ``error``, or ``plain``, which applies only the other links.
    """

    count: Tensor
    pending: Tensor

    def __init__(
        self,
        info: MapInfo,
        *,
        p: float = 0.8,
        q: float = 2.0,
        eps: float = 1e-2,
        single_class: Literal["error", "plain"] = "error",
    ) -> None:
        super().__init__()
        if p < 0 or q < 0 or eps <= 0:
            raise ValueError(
                f"p is {p}, q {q} and eps {eps}, but p and q must not be negative and eps must be positive."
            )
        if single_class not in ("error", "plain"):
            raise ValueError(f"single_class is {single_class!r}, but must be 'error' or 'plain'.")
        if info.num_classes == 1 and single_class == "error":
            raise UndefinedPair(
                f"seesaw lets the classes of an object compete, and the map {info.name!r} has one class; "
                "its single_class=plain trains such a map without it."
            )
        self.p, self.q, self.eps = p, q, eps
        self.register_buffer("count", torch.zeros(info.num_classes, dtype=torch.float64))
        self.register_buffer("pending", torch.zeros(info.num_classes, dtype=torch.float64))

    def forward(
        self, logits: Tensor, target: ClassificationTarget, weights: ElementWeights
    ) -> ElementWeights:
        if self.training:
            self.pending.index_add_(0, target.positive_class, target.is_positive.to(self.pending.dtype))
        locations, classes = logits.shape
        if classes == 1 or not target.positive.numel():
            return weights
        # One row more than the map, where padding is written.
        row = torch.where(target.is_positive, target.positive_location, locations)
        element = torch.ones(
            (locations + 1, classes), dtype=computing_type(logits.dtype), device=logits.device
        )
        element.index_fill_(0, row, 0.0)
        size = block_rows(classes, logits.device, _BLOCK)
        parts = (tensor.split(size) for tensor in (row, target.positive_location, target.positive_class))
        for into, location, label in zip(*parts, strict=True):
            factor = self._factor(logits[location].to(element.dtype), label)
            element.scatter_reduce_(0, into.unsqueeze(1).expand_as(factor), factor, "amax")
        return weights.times(negative_element=element[:locations])

    def update(self) -> None:
        self.count += all_reduce_sum(self.pending)
        self.pending.zero_()

    def statistics(self) -> dict[str, float | Tensor]:
        count = self.count.clamp(min=1)
        return {"mitigation_min": (count.min() / count.max()) ** self.p}

    def _factor(self, z: Tensor, label: Tensor) -> Tensor:
        """Logits (n, C) at samples of the classes ``label`` (n,) to W_ij (n, C)."""
        probability = torch.sigmoid(z)
        own = probability.gather(1, label.unsqueeze(1)).clamp(min=self.eps)
        count = self.count.clamp(min=1).to(z.dtype)
        mitigation = (count / count[label].unsqueeze(1)).clamp(max=1.0) ** self.p
        seesaw = mitigation * (probability / own).clamp(min=1.0) ** self.q
        return seesaw / (torch.sigmoid(-z) + seesaw * probability)
