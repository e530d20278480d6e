"""Depthwise convolution with a fast backward pass in bfloat16 on a CPU.

PyTorch computes the backward pass of a bfloat16 depthwise convolution with a reference kernel, which takes ten times as long as
necessary for 5x5 on 1,152 channels. Here the gradient of the input is a transposed convolution, and the gradient of the weight is one
product and sum for each of the k x k taps, both in float32. In float32 PyTorch's own backward pass is twice as fast.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """``F.conv2d`` with one group for each channel.

    Args:
        x: (B, C, h, w).
        weight: (C, 1, k, k).
        bias: (C,), or None.

    Returns:
        (B, C, (h + 2 padding - k) // stride + 1, ...), in the autocast type if autocast is enabled.
    """
    needs_gradient = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    if x.device.type == "cpu" and dtype == torch.bfloat16 and needs_gradient and fast_bfloat16():
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        return _DepthwiseConv.apply(x, weight, bias, stride, padding)
    return F.conv2d(x, weight, bias, stride, padding, 1, x.shape[1])


def fast_bfloat16() -> bool:
    """Whether this CPU has fast bfloat16 convolutions. Otherwise ``afl.training.precision`` computes them in float32."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class _DepthwiseConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, bias, stride, padding, 1, x.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, padding, kernel = ctx.stride, ctx.padding, weight.shape[-1]
        wide = torch.promote_types(x.dtype, torch.float32)
        g = gradient.to(wide)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        x_gradient = weight_gradient = None
        if needs_x:
            reached = [(size - 1) * stride - 2 * padding + kernel for size in g.shape[2:]]
            rest = [size - have for size, have in zip(x.shape[2:], reached, strict=True)]
            x_gradient = F.conv_transpose2d(
                g, weight.to(wide), None, stride, padding, output_padding=rest, groups=x.shape[1]
            ).to(x.dtype)
        if needs_weight:
            weight_gradient = _weight_gradient(F.pad(x.to(wide), (padding,) * 4), g, kernel, stride)
            weight_gradient = weight_gradient.to(weight.dtype)
        bias_gradient = g.sum((0, 2, 3)).to(weight.dtype) if needs_bias else None
        return x_gradient, weight_gradient, bias_gradient, None, None


def _weight_gradient(padded: Tensor, gradient: Tensor, kernel: int, stride: int) -> Tensor:
    """(C, 1, k, k): for each tap the sum of input times gradient over images and locations."""
    rows, columns = (stride * size for size in gradient.shape[2:])
    pixels, g = padded.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)
    taps = [
        (pixels[:, i : i + rows : stride, j : j + columns : stride] * g).sum((0, 1, 2))
        for i in range(kernel)
        for j in range(kernel)
    ]
    return torch.stack(taps, dim=1).view(-1, 1, kernel, kernel)
