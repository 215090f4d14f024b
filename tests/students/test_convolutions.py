"""Quick gradients are PyTorch's gradients."""

from __future__ import annotations

from copy import deepcopy

import pytest
import timm
import torch
from torch import nn

from vl2v.students.convolutions import quick_convolutions


def gradients(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    x = x.clone().requires_grad_()
    model(x).square().sum().backward()
    assert x.grad is not None
    return [x.grad, *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1, 2, 3, 4])
def test_one_convolution_in_double_precision(kernel: int, stride: int, padding: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, kernel, stride, padding, groups=4, bias=False).double()
    x = torch.randn(2, 4, 11, 9, dtype=torch.float64)
    before = gradients(conv, x)
    assert quick_convolutions(conv, 11) == (0, 1)
    for one, other in zip(before, gradients(conv, x), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("side", [1, 2])
def test_an_input_smaller_than_the_kernel(kernel: int, side: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, kernel, padding=kernel // 2, groups=4, bias=False).double()
    x = torch.randn(2, 4, side, side, dtype=torch.float64)
    before = gradients(conv, x)
    quick_convolutions(conv, side)
    for one, other in zip(before, gradients(conv, x), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("side", [5, 13])
def test_in_bfloat16_they_are_as_close_as_its_digits(side: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False)
    x = torch.randn(4, 8, side, side)
    before = gradients(conv, x)
    quick_convolutions(conv, side)
    after = gradients(conv.bfloat16(), x.bfloat16())
    for one, other in zip(before, after, strict=True):
        assert other.dtype == torch.bfloat16
        assert (one - other.float()).norm() < 0.02 * one.norm()


def test_a_whole_network_keeps_results_names_and_gradients() -> None:
    torch.manual_seed(0)
    model = timm.create_model("tf_efficientnet_lite0", num_classes=0).double().eval()
    names = list(model.state_dict())
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    before = gradients(model, x)
    assert quick_convolutions(model, 64) == (49, 16)
    assert list(model.state_dict()) == names
    for one, other in zip(before, gradients(model, x), strict=True):
        torch.testing.assert_close(one, other)


def test_other_convolutions_are_left_alone() -> None:
    for other in ({"dilation": 2}, {"kernel_size": (3, 5)}, {"bias": True}):
        conv = nn.Conv2d(**{"in_channels": 4, "out_channels": 4, "kernel_size": 3, "groups": 4, "bias": False, **other})
        assert quick_convolutions(conv, 8) == (0, 0)


class Branching(nn.Module):
    """What its convolution returns goes elsewhere, too, unless it doesn't."""

    def __init__(self, apart: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.apart = apart
        with torch.no_grad():
            self.norm.running_mean.normal_()  # type: ignore[union-attr,operator]
            self.norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr,operator]
            self.norm.weight.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.conv(x)
        normed: torch.Tensor = self.act(self.norm(found))
        return normed if self.apart else normed + found


@pytest.mark.parametrize("apart", [True, False])
def test_a_batch_norm_is_folded_where_nothing_else_sees_the_convolution(apart: bool) -> None:
    torch.manual_seed(0)
    model = Branching(apart).double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    before = gradients(model, x)
    assert quick_convolutions(model, 8) == (int(apart), 0)
    for one, other in zip(before, gradients(model, x), strict=True):
        torch.testing.assert_close(one, other)


def test_batch_norms_that_are_trained_and_passes_without_gradients_stay_as_they_are() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet", num_classes=0)
    x = torch.randn(4, 3, 32, 32)
    plain = deepcopy(model)
    assert quick_convolutions(model, 32)[0] > 5
    with torch.no_grad():
        assert torch.equal(model.eval()(x), plain.eval()(x))
    for one, other in zip(gradients(model.train(), x), gradients(plain.train(), x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    for name, value in plain.named_buffers():
        torch.testing.assert_close(model.get_buffer(name), value)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "test_efficientnet", "repvgg_a0"])
def test_other_architectures_keep_their_gradients(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0).double().eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    before = gradients(model, x)
    assert quick_convolutions(model, 64)[0] > 5
    for one, other in zip(before, gradients(model, x), strict=True):
        torch.testing.assert_close(one, other)


def test_frozen_weights_get_no_gradient() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet", num_classes=0).eval()
    quick_convolutions(model, 32)
    frozen = [p for name, p in model.named_parameters() if "blocks.3" not in name]
    for parameter in frozen:
        parameter.requires_grad_(False)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is None for p in frozen)
    assert all(p.grad is not None for name, p in model.named_parameters() if "blocks.3" in name)


def test_a_copy_has_weights_of_its_own() -> None:
    model = Branching(True).eval()
    quick_convolutions(model, 8)
    copy, x = deepcopy(model), torch.randn(1, 3, 8, 8)
    before = copy(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(copy(x), before)
