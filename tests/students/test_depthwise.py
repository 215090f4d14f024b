"""Quick gradients are PyTorch's gradients."""

from __future__ import annotations

from copy import deepcopy

import pytest
import timm
import torch
from torch import nn

from vl2v.students.depthwise import quick_depthwise


def gradients(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    x = x.clone().requires_grad_()
    model(x).square().sum().backward()
    assert x.grad is not None
    return [x.grad, *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_one_convolution_in_double_precision(kernel: int, stride: int, padding: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, kernel, stride, padding, groups=4, bias=False).double()
    x = torch.randn(2, 4, 11, 9, dtype=torch.float64)
    before = gradients(conv, x)
    assert quick_depthwise(conv) == 1
    for one, other in zip(before, gradients(conv, x), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("side", [1, 2])
def test_an_input_smaller_than_the_kernel(kernel: int, side: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, kernel, padding=kernel // 2, groups=4, bias=False).double()
    x = torch.randn(2, 4, side, side, dtype=torch.float64)
    before = gradients(conv, x)
    quick_depthwise(conv)
    for one, other in zip(before, gradients(conv, x), strict=True):
        torch.testing.assert_close(one, other)


def test_a_whole_network_keeps_results_names_and_gradients() -> None:
    torch.manual_seed(0)
    model = timm.create_model("tf_efficientnet_lite0", num_classes=0).double().eval()
    names = list(model.state_dict())
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    before = gradients(model, x)
    assert quick_depthwise(model) == 16
    assert list(model.state_dict()) == names
    for one, other in zip(before, gradients(model, x), strict=True):
        torch.testing.assert_close(one, other)


def test_other_convolutions_are_left_alone() -> None:
    assert quick_depthwise(timm.create_model("resnet18", num_classes=0)) == 0
    assert quick_depthwise(nn.Conv2d(4, 4, 3, groups=4, dilation=2, bias=False)) == 0
    assert quick_depthwise(nn.Conv2d(4, 4, (3, 5), groups=4, bias=False)) == 0


def test_a_copy_has_weights_of_its_own() -> None:
    model = nn.Conv2d(4, 4, 3, groups=4, bias=False)
    quick_depthwise(model)
    copy, x = deepcopy(model), torch.randn(1, 4, 5, 5)
    before = copy(x)
    model.weight.data.zero_()
    assert torch.equal(copy(x), before)
