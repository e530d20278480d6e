"""Seesaw loss between the classes of one object.

Wang et al., Seesaw Loss for Long-Tailed Instance Segmentation, CVPR 2021. For a sample of class i, class j competes in the paper's
softmax with the factor

    S_ij = M_ij C_ij
    M_ij = min(1, (N_j / N_i)^p)            mitigation: a rarer class is pushed down less; N samples so far
    C_ij = max(1, (sigma_j / sigma_i)^q)    compensation: unless it is mistaken for i; sigma_i at least eps

that is, ln S_ij is added to the logit z_j. In a sigmoid head classes compete in one way only: a positive of class i is a negative of
all other classes. There the same shift gives -ln(1 - sigmoid(z_j + ln S_ij)), whose gradient is that of cross-entropy times

    W_ij = S_ij / (1 - p_j + S_ij p_j)

W_ij is S_ij where p_j is small, and it never makes a gradient larger than 1 (S_ij alone can be 10^4). It is the weight of the
negatives of class j at a positive of class i; all other elements keep weight 1. Defaults of the official code: p = 0.8, q = 2, eps =
0.01. The element loss is the head's focal loss, because the paper leaves most of the background to a first stage, which a dense head
does not have. ``gamma: 0`` and ``alpha: -1`` give cross-entropy.

Anchor heads: at positive locations. ObjectBox: its class map has no other locations. Its objectness has one class, so no two
classes compete there and it keeps plain weights, like the paper's objectness branch. Heat maps: at peaks (see ``at_objects``).

Differs from the official code: sigmoid instead of softmax, and p_j instead of sigma_j; N is summed over ranks, and does not count the
current step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from afl.losses.at_objects import shifted_cross_entropy, weighed_at_objects
from afl.losses.contract import MapInfo
from afl.losses.distributed import all_reduce_sum
from afl.losses.target import ClassificationTarget
from afl.losses.weighting import ElementWeights, Weighting


class Seesaw(Weighting):
    """Weights the negatives of the other classes at the locations of an object.

    Args:
        info: the map.
        p, q: exponents of mitigation and compensation, not negative; 0 switches one off.
        eps: smallest probability of the right class that compensation divides by.
    """

    count: Tensor
    pending: Tensor

    def __init__(self, info: MapInfo, *, p: float = 0.8, q: float = 2.0, eps: float = 1e-2) -> None:
        super().__init__()
        if p < 0 or q < 0 or eps <= 0:
            raise ValueError(
                f"p is {p}, q {q} and eps {eps}, but p and q must not be negative and eps must be positive."
            )
        self.p, self.q, self.eps = p, q, eps
        self.register_buffer("count", torch.zeros(info.num_classes, dtype=torch.float64))
        self.register_buffer("pending", torch.zeros(info.num_classes, dtype=torch.float64))

    def forward(
        self, logits: Tensor, target: ClassificationTarget, weights: ElementWeights
    ) -> ElementWeights:
        if self.training:
            self.pending.index_add_(0, target.positive_class, target.is_positive.to(self.pending.dtype))
        return weighed_at_objects(logits, target, weights, self._factor)

    def update(self) -> None:
        self.count += all_reduce_sum(self.pending)
        self.pending.zero_()

    def statistics(self) -> dict[str, float | Tensor]:
        count = self.count.clamp(min=1)
        return {"mitigation_min": (count.min() / count.max()) ** self.p}

    def _factor(self, z: Tensor, label: Tensor, image: Tensor) -> Tensor:
        """Logits (n, C) at samples of the classes ``label`` (n,) to W_ij (n, C)."""
        probability = torch.sigmoid(z)
        own = probability.gather(1, label.unsqueeze(1)).clamp(min=self.eps)
        count = self.count.clamp(min=1).to(z.dtype)
        mitigation = (count / count[label].unsqueeze(1)).clamp(max=1.0) ** self.p
        seesaw = mitigation * (probability / own).clamp(min=1.0) ** self.q
        return shifted_cross_entropy(z, seesaw)
