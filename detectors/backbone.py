"""Backbones: torchvision's ResNets, and ``tiny`` for small images on a CPU.

A backbone maps images (B, 3, H, W) to a dict ``{stride: features (B, channels, H / stride, W / stride)}`` and
lists the channels of every stride in ``channels``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.ops import FrozenBatchNorm2d

STRIDES = (4, 8, 16, 32)
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")


class FrozenBatchNorm(FrozenBatchNorm2d):
    """Batch norm with fixed statistics whose output has the type of its input.

    The statistics are float32. Without the cast, autocast would make the output and all later maps float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (B, C, h, w)."""
        return super().forward(x).to(x.dtype)


class ResNetBackbone(nn.Module):
    """A torchvision ResNet without its classifier: C2 to C5 at strides 4, 8, 16 and 32 (He et al., CVPR 2016).

    Args:
        name: one of ``RESNETS``.
        pretrained: load torchvision's ImageNet weights (downloaded once by torchvision).
        frozen_batch_norm: use fixed statistics, as is usual for detectors with ImageNet weights; only useful with
            ``pretrained``. Published parameter counts refer to this setting.
        frozen_stages: number of frozen stages of (stem + layer1, layer2, layer3, layer4); 1 is usual with ImageNet weights.

    Raises:
        ValueError: the name is unknown, or the weights cannot be downloaded.
    """

    def __init__(
        self, *, name: str, pretrained: bool, frozen_batch_norm: bool, frozen_stages: int = 0
    ) -> None:
        super().__init__()
        if name not in RESNETS:
            raise ValueError(f"backbone.name is {name!r}; known are {', '.join(RESNETS)}")
        norm = FrozenBatchNorm if frozen_batch_norm else nn.BatchNorm2d
        weights = resnet.__dict__[f"ResNet{name[6:]}_Weights"].DEFAULT if pretrained else None
        try:
            body = getattr(resnet, name)(weights=weights, norm_layer=norm)
        except URLError as error:
            raise ValueError(
                f"the ImageNet weights of backbone={name} cannot be downloaded ({error.reason}); put {weights.url} into "
                f"{torch.hub.get_dir()}/checkpoints, or choose backbone=lite0, whose weights are in a package, or "
                "backbone.pretrained=false backbone.frozen_batch_norm=false backbone.frozen_stages=0"
            ) from None
        self.stem = nn.Sequential(body.conv1, body.bn1, body.relu, body.maxpool)
        self.stages = nn.ModuleList([body.layer1, body.layer2, body.layer3, body.layer4])
        width = 64 if name in ("resnet18", "resnet34") else 256
        self.channels = {stride: width * 2**i for i, stride in enumerate(STRIDES)}
        self.frozen_parts = frozen_stages + 1 if frozen_stages else 0
        for module in self._frozen():
            module.requires_grad_(False)

    def _frozen(self) -> list[nn.Module]:
        return [self.stem, *self.stages][: self.frozen_parts]

    def train(self, mode: bool = True) -> ResNetBackbone:
        """Set the mode; the batch norms of frozen stages keep their statistics."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """Compute {4: C2, 8: C3, 16: C4, 32: C5} of images (B, 3, H, W)."""
        features: dict[int, Tensor] = {}
        x = self.stem(images)
        for stride, stage in zip(STRIDES, self.stages, strict=True):
            x = stage(x)
            features[stride] = x
        return features


class TinyBackbone(nn.Module):
    """A narrow ResNet of basic blocks for images of about 100 pixels: strides 2, 4, 8 and 16.

    Args:
        widths: channels at strides 2, 4, 8 and 16.
        blocks: basic blocks at each stride.
    """

    def __init__(
        self, *, widths: tuple[int, ...] = (16, 32, 64, 128), blocks: tuple[int, ...] = (1, 1, 1, 1)
    ):
        super().__init__()
        if len(widths) != 4 or len(blocks) != 4:
            raise ValueError(
                "backbone.widths and backbone.blocks need four numbers each: strides 2, 4, 8, 16"
            )
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
        )
        stages, before = [], widths[0]
        for i, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            stages.append(_stage(before, width, count, stride=1 if i == 0 else 2))
            before = width
        self.stages = nn.ModuleList(stages)
        self.channels = {2 * 2**i: width for i, width in enumerate(widths)}

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """Compute {2: ..., 4: ..., 8: ..., 16: ...} of images (B, 3, H, W)."""
        features: dict[int, Tensor] = {}
        x = self.stem(images)
        for stride, stage in zip(self.channels, self.stages, strict=True):
            x = stage(x)
            features[stride] = x
        return features


def _stage(before: int, width: int, count: int, stride: int) -> nn.Sequential:
    shortcut = None
    if stride != 1 or before != width:
        shortcut = nn.Sequential(
            nn.Conv2d(before, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
        )
    first = resnet.BasicBlock(before, width, stride=stride, downsample=shortcut)
    return nn.Sequential(first, *(resnet.BasicBlock(width, width) for _ in range(count - 1)))


def evaluated_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights that the run of a checkpoint evaluates: the moving average if the run keeps one."""
    if checkpoint.get("average") is None:
        return checkpoint["model"]
    average = checkpoint["average"].items()
    return {name.removeprefix("module."): value for name, value in average if name.startswith("module.")}


def load_features(
    module: nn.Module, checkpoint: Mapping[str, Any], path: str | Path, without: Collection[str] = ()
) -> list[str]:
    """Load the tensors of a checkpoint whose name and shape match ``module``; other tensors keep their values.

    The state of losses is not loaded, because the loss of a new run starts from its initial state.

    Args:
        checkpoint: content of the file ``path``, which messages name.
        without: names of tensors that keep their values in any case.

    Returns:
        The names of the weights without a match, such as class layers of another set of classes.

    Raises:
        ValueError: no weight of the backbone matches, because the file belongs to another architecture.
    """
    state = evaluated_weights(checkpoint)
    own = {
        name: value for name, value in module.state_dict().items() if not name.startswith("classification.")
    }
    fitting = {
        name: value
        for name, value in state.items()
        if name in own and name not in without and own[name].shape == value.shape
    }
    if not any(name.startswith("backbone.") for name in fitting):
        raise ValueError(
            f"{path} has no weight that fits this detector; check that it was trained with the same backbone"
        )
    module.load_state_dict(fitting, strict=False)
    return sorted(set(own) - set(fitting))
