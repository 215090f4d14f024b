"""Convolutions whose gradients are quick on a CPU.

A batch norm in eval mode multiplies and adds constants of each channel. With the convolution that leads into it, it is
one convolution with weights w' = w gamma / sigma and bias b' = beta - mean gamma / sigma, as in an export, but in
training: the gradients of w, gamma and beta follow from those of w' and b'. ReLU6 is done in place. So a layer goes
over its activations a few times instead of a dozen, and saves half as many for the backward pass.

oneDNN is slow in three gradients of depthwise convolutions: of the weights of kernels larger than 3x3, of the weights
where kernels are larger than what they see, and of the input of strided ones. All are sums that its quick forward pass
can do: on small maps the gradient of the weights is a convolution of each image's channels with their own gradient as
kernel, summed over the images, and that of a strided convolution's input is a plain convolution of the gradient, spread
out on the input's grid.

Results and gradients are PyTorch's, up to the order of additions; `benchmarks/convolutions.py` shows what it brings.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LARGEST_MAP = 8
"""Pixels a side of a depthwise convolution's output up to which its own gradient is a quick kernel."""


def quick_convolutions(model: nn.Module, image_size: int) -> tuple[int, int]:
    """Give a model's convolutions quick gradients, in place.

    Names, parameters and results stay. Other devices than the CPU go the usual way, as do passes without gradients, and
    subclasses with a forward of their own (one that standardises its weights, say).

    Args:
        model: pixels [n, 3, s, s] -> features.
        image_size: s.

    Returns:
        How many convolutions have a batch norm folded into them, and how many are depthwise.
    """
    plain = [module for module in model.modules() if _is_plain(module)]
    depthwise = [module for module in plain if _is_depthwise(module)]
    for module in depthwise:
        module.forward = MethodType(_depthwise_forward, module)  # a copy gets its own
    return _fold(model, image_size), len(depthwise)


def _is_plain(module: nn.Module) -> bool:
    from timm.layers import Conv2dSame

    if type(module) not in (nn.Conv2d, Conv2dSame):
        return False
    assert isinstance(module, nn.Conv2d)
    return module.bias is None and module.padding_mode == "zeros" and module.padding not in ("same", "valid")


def _is_depthwise(conv: nn.Module) -> bool:
    assert isinstance(conv, nn.Conv2d)
    square = all(len(set(pair)) == 1 for pair in (conv.kernel_size, conv.stride, conv.dilation))
    odd = conv.kernel_size[0] in (3, 5, 7) and conv.dilation[0] == 1
    return conv.groups > 1 and conv.groups == conv.in_channels == conv.out_channels and square and odd


def _is_pointwise(conv: nn.Conv2d) -> bool:
    return conv.groups == 1 and {*conv.kernel_size, *conv.stride} == {1} and not any(conv.padding)


def _rows(images: Tensor) -> Tensor:
    """Return channels-last images [n, c, h, w] as rows [n h w, c] of the same memory."""
    return images.permute(0, 2, 3, 1).view(-1, images.shape[1])


def _padded(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Return a convolution's input; where it is padded as TensorFlow does, padded already."""
    from timm.layers import Conv2dSame
    from timm.layers.padding import pad_same

    return pad_same(x, conv.kernel_size, conv.stride, conv.dilation) if isinstance(conv, Conv2dSame) else x


def _depthwise_forward(conv: nn.Conv2d, x: Tensor) -> Tensor:
    if x.device.type != "cpu" or not torch.is_grad_enabled():
        return _usual_forward(conv, x)
    x, weight = _padded(conv, x), conv.weight
    if torch.is_autocast_enabled("cpu"):
        kind = torch.get_autocast_dtype("cpu")
        x, weight = x.to(kind), weight.to(kind)
    out: Tensor = _Depthwise.apply(x, weight, conv.stride[0], int(conv.padding[0]))
    return out


def _usual_forward(module: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = type(module).forward(module, x)
    return out


def _fold(model: nn.Module, image_size: int) -> int:
    """Fold the batch norms of a model into the convolutions before them; return how many."""
    pairs = _pairs(model, image_size)
    for conv, norm in pairs:
        conv.__dict__["norm"] = norm  # not registered: its parameters have one name
        conv.forward = MethodType(_folded_forward, conv)  # type: ignore[method-assign]
        norm.forward = MethodType(_after_folding, norm)  # type: ignore[method-assign]
    if pairs and not _is_unchanged(model, image_size):  # what a convolution returns is used elsewhere, too
        for conv, norm in pairs:
            norm.forward = MethodType(type(norm).forward, norm)  # type: ignore[method-assign]
            forward = _depthwise_forward if _is_depthwise(conv) else type(conv).forward
            conv.forward = MethodType(forward, conv)  # type: ignore[method-assign]
        return 0
    return len(pairs)


def _pairs(model: nn.Module, image_size: int) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Return convolutions with the batch norm that takes what they return, each of them called once."""
    returned: list[tuple[nn.Conv2d, Tensor]] = []
    taken: list[tuple[nn.BatchNorm2d, Tensor]] = []

    def of_conv(module: nn.Module, _: Any, out: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        returned.append((module, out))

    def of_norm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        taken.append((module, inputs[0]))

    modules = [*model.modules()]
    norms = [module for module in modules if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return []
    handles = [module.register_forward_hook(of_conv) for module in modules if _is_plain(module)]
    handles += [norm.register_forward_pre_hook(of_norm) for norm in norms if norm.affine and norm.track_running_stats]
    try:
        _run(model, image_size)
    finally:
        for handle in handles:
            handle.remove()
    convs = [conv for conv, _ in returned]
    called = [norm for norm, _ in taken]
    return [
        (conv, norm)
        for conv, out in returned
        for norm, x in taken
        if x is out and convs.count(conv) == called.count(norm) == 1
    ]


def _run(model: nn.Module, image_size: int, *, gradients: bool = False) -> Tensor:
    """Return what a model makes of an image of noise, in eval mode."""
    from vl2v.students.student import evaluating

    generator = torch.Generator().manual_seed(0)
    weight = next(model.parameters())
    image = torch.randn(1, 3, image_size, image_size, generator=generator).to(weight)
    with evaluating(model), torch.set_grad_enabled(gradients):
        out: Tensor = model(image.contiguous(memory_format=torch.channels_last))
    return out.detach()


def _is_unchanged(model: nn.Module, image_size: int) -> bool:
    usual = _run(model, image_size)
    return torch.allclose(_run(model, image_size, gradients=True), usual, rtol=1e-3, atol=1e-4 * float(usual.std()))


def _folds(norm: nn.Module, x: Tensor) -> bool:
    """Return whether a batch norm is folded at this call: the convolution and the norm have to agree."""
    plain = x.device.type == "cpu" and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    return plain and not norm.training


def _folded_forward(conv: nn.Conv2d, x: Tensor) -> Tensor:
    norm = conv.__dict__["norm"]
    if not _folds(norm, x):
        return _depthwise_forward(conv, x) if _is_depthwise(conv) else _usual_forward(conv, x)
    x = _padded(conv, x).contiguous(memory_format=torch.channels_last)
    kind = "depthwise" if _is_depthwise(conv) else "pointwise" if _is_pointwise(conv) else ""
    geometry = conv.stride, conv.padding, conv.dilation, conv.groups, kind, _clamps(norm)
    statistics = norm.running_mean, (norm.running_var + norm.eps).rsqrt()
    out: Tensor = _Folded.apply(x, conv.weight, norm.weight, norm.bias, *statistics, geometry)
    return out


def _after_folding(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    if not _folds(norm, x):
        return _usual_forward(norm, x)
    if _clamps(norm) or not hasattr(norm, "act"):
        return x
    drop, act = norm.drop, norm.act  # of timm's BatchNormAct2d
    assert isinstance(drop, nn.Module) and isinstance(act, nn.Module)
    out: Tensor = act(drop(x))
    return out


def _clamps(norm: nn.Module) -> bool:
    return isinstance(getattr(norm, "act", None), nn.ReLU6) and isinstance(norm.drop, nn.Identity)


class _Folded(torch.autograd.Function):
    """relu6(conv2d(x, w gamma / sigma) + beta - mean gamma / sigma), without relu6 where it isn't wanted."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        gamma: Tensor,
        beta: Tensor,
        mean: Tensor,
        over_sigma: Tensor,
        geometry: tuple[Any, ...],
    ) -> Tensor:
        stride, padding, dilation, groups, kind, clamps = geometry
        factor = gamma * over_sigma
        bias = beta - mean * factor
        product = None
        if kind == "pointwise":  # a product of matrices, for which MKL is quicker than oneDNN
            shape = len(x), len(weight), *x.shape[2:]
            out = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
            if len(_rows(x)) < x.shape[1]:  # there is less to multiply in the product than in the weights
                product = _rows(x) @ weight.flatten(1).T
                torch.addcmul(bias, product, factor, out=_rows(out))
            else:
                torch.addmm(bias, _rows(x), _times(weight, factor).flatten(1).T, out=_rows(out))
        else:
            out = functional.conv2d(x, _times(weight, factor), bias, stride, padding, dilation, groups)
        if clamps:
            out.clamp_(0, 6)
        ctx.save_for_backward(x, weight, factor, mean, over_sigma, out if clamps else None, product)
        ctx.geometry = geometry
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, factor, mean, over_sigma, out, product = ctx.saved_tensors
        stride, padding, dilation, groups, kind, _ = ctx.geometry
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        if out is not None:
            gradient = torch.ops.aten.hardtanh_backward(gradient, out, 0.0, 6.0)
        if product is not None:
            return _of_product(ctx.needs_input_grad[0], _rows(gradient), x, weight, factor, mean, over_sigma, product)
        folded = _times(weight, factor)
        wants_x, wants_weights = ctx.needs_input_grad[0], any(ctx.needs_input_grad[1:4])
        of_x = of_weight = of_bias = None
        if kind == "depthwise":
            sides = stride[0], padding[0]
            of_x = _input_gradient(gradient, x, folded, *sides) if wants_x else None
            if wants_weights:
                of_weight, of_bias = _weight_gradient(gradient, x, folded, *sides), _rows(gradient).sum(0)
        elif kind == "pointwise":
            rows = _rows(gradient)
            if wants_x:
                of_x = torch.empty_like(x)
                torch.mm(rows, folded.flatten(1), out=_rows(of_x))
            if wants_weights:
                of_weight, of_bias = (rows.T @ _rows(x)).view_as(weight), rows.sum(0)
        else:
            wanted = [wants_x, wants_weights, wants_weights]
            of_x, of_weight, of_bias = torch.ops.aten.convolution_backward(
                gradient, x, folded, [len(weight)], stride, padding, dilation, False, [0, 0], groups, wanted
            )
        if of_weight is None or of_bias is None:
            return of_x, None, None, None, None, None, None
        of_gamma = over_sigma * ((of_weight * weight).sum((1, 2, 3)) - mean * of_bias)
        return of_x, _times(of_weight, factor), of_gamma, of_bias, None, None, None


def _times(weight: Tensor, factor: Tensor) -> Tensor:
    """Return weights [c, ...] times a factor of each output channel."""
    return weight * factor.view(-1, 1, 1, 1)


def _of_product(
    wants_x: bool,
    rows: Tensor,
    x: Tensor,
    weight: Tensor,
    factor: Tensor,
    mean: Tensor,
    over_sigma: Tensor,
    product: Tensor,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of a pointwise convolution whose batch norm was applied to the product x w [n h w, c]."""
    of_beta = rows.sum(0)
    of_gamma = over_sigma * ((rows * product).sum(0) - mean * of_beta)
    rows = rows * factor
    of_x = None
    if wants_x:
        of_x = torch.empty_like(x)
        torch.mm(rows, weight.flatten(1), out=_rows(of_x))
    return of_x, (rows.T @ _rows(x)).view_as(weight), of_gamma, of_beta, None, None, None


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
    kernel = weight.shape[-1]
    if stride == 1 or padding >= kernel:  # which would be a negative padding below
        return _usual(gradient, x, weight, stride, padding, 0)
    height, width = (side + 2 * padding - kernel + 1 for side in x.shape[-2:])
    shape = *gradient.shape[:2], height, width
    spread = torch.empty(shape, dtype=gradient.dtype, memory_format=torch.channels_last).zero_()
    spread[:, :, ::stride, ::stride] = gradient
    return functional.conv2d(spread, weight.flip(2, 3), None, 1, kernel - 1 - padding, 1, len(weight))


def _weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    kernel = weight.shape[-1]
    if max(gradient.shape[-2:]) > LARGEST_MAP or (kernel == 3 and min(x.shape[-2:]) >= kernel):
        if kernel > 3 and x.dtype == torch.bfloat16:  # in which it takes ten times as long
            return _usual(gradient.float(), x.float(), weight.float(), stride, padding, 1).to(weight.dtype)
        return _usual(gradient, x, weight, stride, padding, 1)
    (n, c, *sides), map_size = x.shape, gradient.shape[-2:]
    images = x.permute(2, 3, 0, 1).reshape(1, *sides, n * c).permute(0, 3, 1, 2)  # every image's channels side by side
    taps = functional.conv2d(images, gradient.reshape(n * c, 1, *map_size), None, 1, padding, stride, n * c)
    taps = taps[..., :kernel, :kernel].permute(0, 2, 3, 1)
    return taps.reshape(kernel, kernel, n, c).sum(2).permute(2, 0, 1).unsqueeze(1)


def _usual(gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, which: int) -> Tensor:
    """Return PyTorch's own gradient of the input (0) or of the weight (1)."""
    wanted = [which == 0, which == 1, False]
    sides = [stride] * 2, [padding] * 2, [1, 1]
    found: Tensor = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, *sides, False, [0, 0], len(weight), wanted
    )[which]
    return found
