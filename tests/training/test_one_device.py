"""One device without Fabric, and optimisers without the compiler, compute what those compute."""

from __future__ import annotations

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from vl2v.config import TrainConfig
from vl2v.training.device import Adam, AdamW, OneDevice


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


@pytest.mark.parametrize(("ours", "theirs"), [(Adam, torch.optim.Adam), (AdamW, torch.optim.AdamW)])
def test_an_optimiser_takes_the_steps_of_pytorchs(ours: type, theirs: type) -> None:
    ended: list[list[Tensor]] = []
    for kind in (ours, theirs):
        trained = model()
        optimizer = kind([{"params": [*trained.parameters()], "rate": 1.0}], lr=1e-2, weight_decay=0.1, fused=True)
        for step in range(5):
            optimizer.zero_grad()
            trained(torch.linspace(-1, 1, 32 * 8).view(32, 8) * step).square().mean().backward()
            optimizer.step()
        ended.append([weight.detach() for weight in trained.parameters()])
        assert {"step", "exp_avg", "exp_avg_sq"} == optimizer.state_dict()["state"][0].keys()
    assert all(torch.equal(one, other) for one, other in zip(*ended, strict=True))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_computes_in_the_precision_as_with_fabric(precision: str) -> None:
    device = OneDevice(TrainConfig(accelerator="cpu", precision=precision))  # type: ignore[arg-type]
    fabric = Fabric(accelerator="cpu", devices=1, precision=device.precision)
    x = torch.linspace(-1, 1, 32 * 8).view(32, 8)
    found: list[list[Tensor]] = []
    for setup in (device, fabric):
        trained = model()
        out = setup.setup_module(trained)(x)
        assert out.dtype == torch.float32
        setup.backward(out.square().mean())
        found.append(
            [out.detach(), *(weight.grad.clone() for weight in trained.parameters() if weight.grad is not None)]
        )
    assert len(found[0]) == 5 and all(torch.equal(one, other) for one, other in zip(*found, strict=True))
