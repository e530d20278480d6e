"""Building blocks of the heads: towers of convolutions and the last layer with its prior."""

from __future__ import annotations

import math

from torch import Tensor, nn

NORMS = ("none", "group", "batch_per_level")


class Tower(nn.Module):
    """Convolutions shared over the levels of a pyramid: [3x3 conv, norm, ReLU] x ``depth``.

    Statistics differ between levels, so the levels must not share a batch norm. ``batch_per_level`` shares the convolutions and has
    one batch norm for each level; ``group`` needs no statistics.

    Args:
        channels: input and output channels.
        depth: number of convolutions.
        norm: one of ``NORMS``.
        levels: number of pyramid levels.
    """

    def __init__(self, *, channels: int, depth: int, norm: str, levels: int) -> None:
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"norm is {norm!r}; known are {', '.join(NORMS)}")
        bias = norm != "batch_per_level"
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1, bias=bias) for _ in range(depth)
        )
        self.norms = nn.ModuleList()
        for _ in range(depth):
            if norm == "batch_per_level":
                self.norms.append(nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(levels)))
            else:
                # A group has at least two channels, so that a level of one cell can be normalised.
                groups = 32 if channels % 32 == 0 and channels > 32 else min(8, channels // 2)
                one = _GroupNorm(groups, channels) if norm == "group" else nn.Identity()
                self.norms.append(nn.ModuleList([one] * levels))
        self.activation = nn.ReLU(inplace=True)
        for conv in self.convs:
            if norm == "batch_per_level":
                nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            else:
                normal_init(conv)

    def forward(self, x: Tensor, level: int) -> Tensor:
        """Apply the tower to x (B, channels, h, w) of pyramid level ``level``; the shape does not change."""
        for conv, norms in zip(self.convs, self.norms, strict=True):
            x = self.activation(norms[level](conv(x)))
        return x


class _GroupNorm(nn.GroupNorm):
    """Group norm, on a CPU in float32: torch's backward pass of bfloat16 maps in channels_last takes several times as long."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype) if x.device.type == "cpu" else super().forward(x)


def normal_init(conv: nn.Conv2d, std: float = 0.01, bias: float = 0.0) -> nn.Conv2d:
    """Initialise with Gaussian weights and a constant bias, as in the heads of RetinaNet and FCOS (Lin et al. 2017, 4.1)."""
    nn.init.normal_(conv.weight, std=std)
    if conv.bias is not None:
        nn.init.constant_(conv.bias, bias)
    return conv


def prior_bias(prior: float) -> float:
    """The bias whose sigmoid is ``prior``, strictly between 0 and 1: -log((1 - prior) / prior) (Lin et al. 2017, 3.3)."""
    if not 0 < prior < 1:
        raise ValueError(f"prior is {prior}; a probability strictly between 0 and 1 is needed")
    return -math.log((1 - prior) / prior)


def map_head(in_channels: int, hidden: int, out_channels: int, prior: float | None = None) -> nn.Sequential:
    """Head on one map: 3x3 conv, ReLU, 1x1 conv (Objects as Points, 4; CornerNet, 3.1).

    Args:
        prior: initial probability of a classification map; None for regression, with a bias of zero.
    """
    last = nn.Conv2d(hidden, out_channels, 1)
    if prior is None:
        normal_init(last, std=0.001)
    else:
        nn.init.constant_(last.bias, prior_bias(prior))
    return nn.Sequential(nn.Conv2d(in_channels, hidden, 3, padding=1), nn.ReLU(inplace=True), last)


def as_map(x: Tensor, channels: int) -> Tensor:
    """Reshape (B, A * channels, h, w) to (B, h * w * A, channels); a view if the tensor is channels_last."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, channels)
