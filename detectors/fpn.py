"""Feature pyramid network (Lin et al., CVPR 2017) with the strides that a detector asks for."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class FeaturePyramid(nn.Module):
    """Top-down pathway with lateral connections; strided convolutions compute the levels that are coarser than the backbone's.

    Args:
        in_channels: channels of the backbone's features by stride.
        strides: strides of the levels, ascending by factors of two; for example (8, 16, 32, 64, 128) for P3 to P7, or (4,) for
            one fine map.
        channels: channels of every level.
        extra_from: source of the first level beyond the backbone: ``"backbone"`` (C5, RetinaNet) or
            ``"pyramid"`` (P5, FCOS).
        batch_norm: normalise every lateral and output convolution; for training from scratch.

    Raises:
        ValueError: the strides do not double from level to level, or the backbone lacks one of them.
    """

    def __init__(
        self,
        *,
        in_channels: dict[int, int],
        strides: tuple[int, ...],
        channels: int,
        extra_from: str = "backbone",
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        if extra_from not in ("backbone", "pyramid"):
            raise ValueError(f"extra_from is {extra_from!r}; it is 'backbone' or 'pyramid'")
        self.strides, self.channels, self.extra_from = tuple(strides), channels, extra_from
        if any(b != 2 * a for a, b in pairwise(strides)):
            raise ValueError(
                f"strides are {tuple(strides)}, but each level of a pyramid has twice the stride of the level before it"
            )
        # Convolutions compute the levels above the backbone's last one, except the first level.
        needed = {strides[0], *(stride for stride in strides if stride <= max(in_channels))}
        if missing := sorted(needed - set(in_channels)):
            raise ValueError(
                f"strides are {tuple(strides)}, but the backbone has features at the strides {list(in_channels)}, not at {missing[0]}"
            )
        lateral = [stride for stride in in_channels if stride >= strides[0]]
        self.lateral_strides = tuple(sorted(lateral))
        self.lateral = nn.ModuleDict(
            {str(s): _conv(in_channels[s], channels, 1, batch_norm) for s in self.lateral_strides}
        )
        self.output = nn.ModuleDict(
            {str(s): _conv(channels, channels, 3, batch_norm) for s in self.lateral_strides if s in strides}
        )
        top = self.lateral_strides[-1]
        self.extra = nn.ModuleDict()
        for stride in (s for s in strides if s > top):
            from_backbone = stride == 2 * top and extra_from == "backbone"
            before = in_channels[top] if from_backbone else channels
            self.extra[str(stride)] = nn.Conv2d(before, channels, 3, stride=2, padding=1)
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.kaiming_uniform_(conv.weight, a=1)
                if conv.bias is not None:
                    nn.init.zeros_(conv.bias)

    def forward(self, features: dict[int, Tensor]) -> list[Tensor]:
        """Compute one map (B, channels, h, w) for each stride from the features {stride: (B, c, h, w)}."""
        levels: dict[int, Tensor] = {}
        above: Tensor | None = None
        for stride in reversed(self.lateral_strides):
            x = self.lateral[str(stride)](features[stride])
            if above is not None:
                x = x + F.interpolate(above, size=x.shape[-2:], mode="nearest")
            above = x
            if str(stride) in self.output:
                levels[stride] = self.output[str(stride)](x)
        top = self.lateral_strides[-1]
        x = features[top] if self.extra_from == "backbone" else levels.get(top)
        for i, (name, conv) in enumerate(self.extra.items()):
            # P6 is a plain convolution of its source; every later level has a ReLU before it (RetinaNet, 4).
            x = _halved(x if i == 0 else F.relu(x), conv)
            levels[int(name)] = x
        return [levels[stride] for stride in self.strides]


def _halved(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """``conv(x)`` of a 3x3 convolution with stride 2 and padding 1.

    If a side has one pixel, the outer rows or columns of the kernel only multiply padding, so they are left out. The result is
    the same, but torch 2.11 leaves their gradient uninitialised in bfloat16 on a CPU (image sides up to 64 at stride 128).
    """
    height, width = x.shape[-2:]
    if min(height, width) > 1:
        return conv(x)
    rows, columns = (slice(1, 2) if side == 1 else slice(None) for side in (height, width))
    padding = (int(height > 1), int(width > 1))
    return F.conv2d(x, conv.weight[:, :, rows, columns], conv.bias, stride=2, padding=padding)


def _conv(before: int, after: int, size: int, batch_norm: bool) -> nn.Module:
    conv = nn.Conv2d(before, after, size, padding=size // 2, bias=not batch_norm)
    return nn.Sequential(conv, nn.BatchNorm2d(after)) if batch_norm else conv
