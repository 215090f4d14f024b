"""Training steps a second with and without quick convolutions, in one run.

    python benchmarks/convolutions.py

Forward and backward of a batch of 64 in memory, batch norms in eval mode, channels-last; images/s and the ratio to
plain PyTorch of the same precision; the relative error of the gradient against plain fp32 in float64 norms.
"""

from __future__ import annotations

import time

import timm
import torch
from torch import Tensor, nn

from vl2v.students.convolutions import quick_convolutions

BATCH, REPEATS = 64, 5


def gradient(model: nn.Module, x: Tensor, weights: Tensor, bfloat16: bool) -> Tensor:
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        out = model(x)
    (out.float() * weights).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def main() -> None:
    print("| model, px | precision | plain img/s | quick img/s | ratio | gradients differ by |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, size in (
        ("tf_efficientnet_lite0", 64),
        ("tf_efficientnet_lite0", 128),
        ("tf_efficientnet_lite0", 224),
        ("mobilenetv3_large_100", 128),
    ):
        torch.manual_seed(0)
        plain = timm.create_model(name, num_classes=0).eval().to(memory_format=torch.channels_last)
        quick = timm.create_model(name, num_classes=0).eval().to(memory_format=torch.channels_last)
        quick.load_state_dict(plain.state_dict())
        quick_convolutions(quick, size)
        x = torch.randn(BATCH, 3, size, size).contiguous(memory_format=torch.channels_last)
        weights = torch.randn(plain(x[:2]).shape[1])
        for bfloat16 in (False, True):
            one, other = gradient(plain, x, weights, bfloat16), gradient(quick, x, weights, bfloat16)
            seconds = {"plain": 0.0, "quick": 0.0}
            for _ in range(REPEATS):  # in turns, so that a noisy machine is noisy to both
                for which, model in (("plain", plain), ("quick", quick)):
                    start = time.perf_counter()
                    gradient(model, x, weights, bfloat16)
                    seconds[which] += time.perf_counter() - start
            rates = {which: BATCH * REPEATS / spent for which, spent in seconds.items()}
            error = ((one - other).norm() / one.norm()).item()
            kind = "bf16" if bfloat16 else "fp32"
            ratio = rates["quick"] / rates["plain"]
            rows = f"{rates['plain']:.0f} | {rates['quick']:.0f} | {ratio:.2f} | {error:.1e}"
            print(f"| {name}, {size} | {kind} | {rows} |")


if __name__ == "__main__":
    main()
