"""Balanced group softmax (BAGS) in sigmoid form: objects push down the classes of other groups only in proportion.

Li et al., Overcoming Classifier Imbalance for Long-Tail Object Detection with Balanced Group Softmax, CVPR 2020, section 4.

Classes form groups by their number of training instances, with bounds at 10, 100 and 1,000. In the paper each group has a separate
softmax with an additional output "others", which stands for the classes of all other groups. At most beta samples of other groups
are drawn for each of the group's own, so a group without a sample learns nothing.

In a sigmoid head a negative of class j at an object of class i has the weight

    W_ij = 1                          if i and j are in the same group
    W_ij = min(1, beta P_j / Q_j)     otherwise: the mean number of times that the paper's draw keeps the object

where P_j counts the objects of class j's group in the image, and Q_j those of the other groups. Defaults of the official code: beta
= 8 and the bounds above. The paper's element loss is cross-entropy; here it is the head's focal loss.

Anchors, grids and heat maps: ``at_objects`` says which locations belong to an object, and P and Q count these locations.
ObjectBox's objectness has one class and keeps plain weights.

Differs from the official code: sigmoid instead of softmax, so "others" needs no output; the mean of the draw instead of the draw, in
each image instead of in each batch; background locations keep weight 1, because a dense head also learns the background, which the
paper leaves to a separate group.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from afl.losses.at_objects import weighed_at_objects
from afl.losses.contract import MapInfo
from afl.losses.target import ClassificationTarget
from afl.losses.weighting import ElementWeights, Weighting


class BalancedGroups(Weighting):
    """Weighs the negatives of other groups' classes at an object by the number of objects of their group in the image.

    Args:
        info: the map; its ``instances_per_class`` define the groups.
        bounds: increasing numbers of instances at which a group ends.
        beta: objects of other groups for each object of the group, positive.
    """

    group: Tensor

    def __init__(
        self, info: MapInfo, *, bounds: Sequence[float] = (10.0, 100.0, 1000.0), beta: float = 8.0
    ) -> None:
        super().__init__()
        if beta <= 0 or list(bounds) != sorted(bounds):
            raise ValueError(f"beta is {beta} and bounds {list(bounds)}: positive and increasing are needed.")
        self.beta, self.num_groups = beta, len(bounds) + 1
        edges = torch.tensor(list(bounds), dtype=torch.float64)
        self.register_buffer("group", torch.bucketize(info.instances_per_class.double(), edges, right=True))

    def forward(
        self, logits: Tensor, target: ClassificationTarget, weights: ElementWeights
    ) -> ElementWeights:
        return weighed_at_objects(
            logits, target, weights, partial(self._factor, share=self._share_of_others(target))
        )

    def statistics(self) -> dict[str, float | Tensor]:
        sizes = torch.bincount(self.group, minlength=self.num_groups)
        return {"groups_used": (sizes > 0).sum()}

    def _share_of_others(self, target: ClassificationTarget) -> Tensor:
        """(B, G) float64 weight of group G at the objects of other groups in each image."""
        own = torch.zeros(
            target.num_images * self.num_groups, dtype=torch.float64, device=target.positive.device
        )
        if target.num_locations:
            place = (
                target.image[target.positive_location] * self.num_groups + self.group[target.positive_class]
            )
            own.index_add_(0, place, target.is_positive.double())
        own = own.view(target.num_images, self.num_groups)
        others = own.sum(1, keepdim=True) - own
        return (self.beta * own / others.clamp(min=1.0)).clamp(max=1.0)

    def _factor(self, z: Tensor, label: Tensor, image: Tensor, *, share: Tensor) -> Tensor:
        same = self.group == self.group[label].unsqueeze(1)
        return torch.where(same, 1.0, share[image][:, self.group]).to(z.dtype)
