"""Head of one kind of key point: its heat map, and values that are read at its cells."""

from __future__ import annotations

from torch import Tensor, nn

from detectors.heads import map_head


class PointHead(nn.Module):
    """Branches 3x3 conv, ReLU, 1x1 conv on one map (CornerNet, 3.1; ExtremeNet, 4.1).

    Args:
        channels, hidden: input channels, and channels behind the 3x3 convolution.
        num_classes: C of the heat map.
        prior: probability that a fresh heat map gives to every element.
        values: channels of each further branch by name, for example ``{"offset": 2, "tag": 1}``.
        shared: one 3x3 convolution for all branches instead of one for each (the papers'); for narrow, quick heads.
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
        return (
            self.branches["heat"]
            if isinstance(self.branches["heat"], nn.Conv2d)
            else self.branches["heat"][-1]
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, channels, h, w) to ``heat`` (B, C, h, w) logits and each value (B, its channels, h, w)."""
        x = self.trunk(x)
        return {name: branch(x) for name, branch in self.branches.items()}
