"""Depthwise convolutions whose gradients are quick on a CPU.

oneDNN is slow in three gradients of depthwise convolutions, the more so in bfloat16: of the weights of kernels larger
than 3x3, of the weights where kernels are larger than what they see, and of the input of strided ones. All are sums
that quick passes can do: a 5x5 weight gradient is made of 3x3 ones, a small input is padded first, and the input
gradient of a strided convolution is a plain convolution of the gradient, spread out on the input's grid. The results
are PyTorch's, up to the order of additions; `benchmarks/depthwise.py` shows what it brings.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def quick_depthwise(model: nn.Module) -> int:
    """Give a model's square depthwise convolutions quick gradients, in place; return how many have them.

    Names, parameters and results stay. Other devices than the CPU go the usual way, as do subclasses with a forward of
    their own (one that standardises its weights, say).
    """
    from timm.layers import Conv2dSame

    count = 0
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and type(module) in (nn.Conv2d, Conv2dSame) and _is_depthwise(module):
            forward = _forward_same if isinstance(module, Conv2dSame) else _forward
            module.forward = MethodType(forward, module)  # type: ignore[method-assign]  # a copy gets its own
            count += 1
    return count


def _is_depthwise(conv: nn.Conv2d) -> bool:
    square = all(len(set(pair)) == 1 for pair in (conv.kernel_size, conv.stride, conv.dilation))
    plain = conv.bias is None and conv.padding_mode == "zeros" and conv.dilation[0] == 1
    odd = conv.kernel_size[0] in (3, 5, 7)
    return conv.groups > 1 and conv.groups == conv.in_channels == conv.out_channels and square and plain and odd


def _forward(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return _usual_forward(conv, x) if _unsuited(x) else _quick(conv, x, int(conv.padding[0]))


def _forward_same(conv: nn.Conv2d, x: Tensor) -> Tensor:
    from timm.layers.padding import pad_same

    if _unsuited(x):
        return _usual_forward(conv, x)
    return _quick(conv, pad_same(x, conv.kernel_size, conv.stride, conv.dilation), 0)


def _unsuited(x: Tensor) -> bool:
    return x.device.type != "cpu" or not torch.is_grad_enabled()


def _usual_forward(conv: nn.Conv2d, x: Tensor) -> Tensor:
    out: Tensor = type(conv).forward(conv, x)
    return out


def _quick(conv: nn.Conv2d, x: Tensor, padding: int) -> Tensor:
    weight = conv.weight
    if torch.is_autocast_enabled("cpu"):
        kind = torch.get_autocast_dtype("cpu")
        x, weight = x.to(kind), weight.to(kind)
    out: Tensor = _Depthwise.apply(x, weight, conv.stride[0], padding)
    return out


class _Depthwise(torch.autograd.Function):
    """conv2d(x [n, c, h, w], weight [c, 1, k, k]) with c groups."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return functional.conv2d(x, weight, None, stride, padding, 1, len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        wants_x, wants_weight = ctx.needs_input_grad[:2]
        of_x = _input_gradient(gradient, x, weight, ctx.stride, ctx.padding) if wants_x else None
        of_weight = _weight_gradient(gradient, x, weight, ctx.stride, ctx.padding) if wants_weight else None
        return of_x, of_weight, None, None


def _input_gradient(gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    if stride == 1:
        return _usual(gradient, x, weight, stride, padding, 0)
    kernel = weight.shape[-1]
    height, width = (side + 2 * padding - kernel + 1 for side in x.shape[-2:])
    shape = *gradient.shape[:2], height, width
    spread = torch.empty(shape, dtype=gradient.dtype, memory_format=torch.channels_last).zero_()
    spread[:, :, ::stride, ::stride] = gradient
    return functional.conv2d(spread, weight.flip(2, 3), None, 1, kernel - 1 - padding, 1, len(weight))


def _weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    kernel = weight.shape[-1]
    if kernel == 3 and min(x.shape[-2:]) >= kernel:
        return _usual(gradient, x, weight, stride, padding, 1)
    if padding:
        x = functional.pad(x, (padding,) * 4)
    height, width = (stride * (side - 1) + 3 for side in gradient.shape[-2:])
    out = torch.empty_like(weight)
    block = weight[:, :, :3, :3].contiguous()
    for top in range(0, kernel - 2, 2):
        for left in range(0, kernel - 2, 2):
            seen = x[:, :, top : top + height, left : left + width].contiguous(memory_format=torch.channels_last)
            out[:, :, top : top + 3, left : left + 3] = _usual(gradient, seen, block, stride, 0, 1)
    return out


def _usual(gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, which: int) -> Tensor:
    """Return PyTorch's own gradient of the input (0) or of the weight (1)."""
    wanted = [which == 0, which == 1, False]
    sides = [stride] * 2, [padding] * 2, [1, 1]
    found: Tensor = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, *sides, False, [0, 0], len(weight), wanted
    )[which]
    return found
