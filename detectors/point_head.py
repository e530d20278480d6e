"""Heads of key points, shared by CornerNet and ExtremeNet: heat maps, values at their cells, and the losses of the maps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from afl.losses.target import ClassificationTarget
from detectors.contract import ClassCounts, LossFactory, Outputs
from detectors.heads import as_map, map_head
from detectors.normalizer import mean_over_ranks


class PointHead(nn.Module):
    """Branches 3x3 conv, ReLU, 1x1 conv on one map (CornerNet, 3.1; ExtremeNet, 4.1).

    Args:
        channels, hidden: input channels, and channels after the 3x3 convolution.
        num_classes: C of the heat map.
        prior: initial probability of every element of the heat map.
        values: channels of each further branch by name, for example ``{"offset": 2, "tag": 1}``.
        shared: use one 3x3 convolution for all branches, for narrow and fast heads; the papers use one for each branch.
    """

    def __init__(
        self,
        *,
        channels: int,
        hidden: int,
        num_classes: int,
        prior: float,
        values: dict[str, int],
        shared: bool,
    ) -> None:
        super().__init__()
        heads = {"heat": map_head(channels, hidden, num_classes, prior=prior)}
        heads |= {name: map_head(channels, hidden, size) for name, size in values.items()}
        self.trunk = heads["heat"][:-1] if shared else nn.Identity()
        self.branches = nn.ModuleDict({name: head[-1] if shared else head for name, head in heads.items()})

    @property
    def heat_layer(self) -> nn.Conv2d:
        """The heat map's last layer, whose bias is the prior."""
        branch = self.branches["heat"]
        return branch if isinstance(branch, nn.Conv2d) else branch[-1]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Compute ``heat`` (B, C, h, w) logits and each value (B, its channels, h, w) of a map (B, channels, h, w)."""
        x = self.trunk(x)
        return {name: branch(x) for name, branch in self.branches.items()}


def point_heads(
    values: Mapping[str, dict[str, int]],
    *,
    channels: int,
    hidden: int,
    num_classes: int,
    prior: float,
    shared: bool,
) -> nn.ModuleDict:
    """A :class:`PointHead` for each key point; ``values`` maps its name to the head's further branches."""
    return nn.ModuleDict(
        {
            name: PointHead(
                channels=channels,
                hidden=hidden,
                num_classes=num_classes,
                prior=prior,
                values=branches,
                shared=shared,
            )
            for name, branches in values.items()
        }
    )


def losses_of_maps(
    loss: LossFactory, classes: ClassCounts, names: Iterable[str], *, prior: float, alpha: float
) -> nn.ModuleDict:
    """An instance of the classification loss for each heat map, by its name."""
    return nn.ModuleDict(
        {
            name: loss(classes.map_info(name, prior=prior, alpha=alpha, dense_positives=False))
            for name in names
        }
    )


def heatmap_losses(
    losses: nn.ModuleDict, outputs: Outputs, maps: Mapping[str, ClassificationTarget], rest: Tensor
) -> dict[str, Tensor]:
    """The classification loss of each heat map, divided by the map's number of peaks.

    Args:
        outputs: logits (B, C, h, w) by the map's name; maps: targets by the same names.
        rest: detached weighted sum of the detector's other losses. Each map receives an equal part of it, so that all maps
            together balance the sum.
    """
    return {
        name: losses[name](
            as_map(outputs[name], target.num_classes).flatten(0, 1),
            target,
            mean_over_ranks(target.num_positives()),
            localization=rest / len(maps),
        )
        for name, target in maps.items()
    }
