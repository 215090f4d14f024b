"""Training steps a second as vl2v computes them, against plain PyTorch in channels-last.

    python benchmarks/convolutions.py

Forward and backward of a batch in memory, batch norms in eval mode, each in a process of its own, in turns: PyTorch as
it comes; the same in a process that uses freed memory again (`vl2v.system.reuse_freed_memory`); and with quick
convolutions besides, as a run trains. Images/s, medians; the ratio to the first; the relative error of the gradient
against plain fp32. In bfloat16 besides, where the processor computes in it.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

import timm
import torch
from torch import Tensor, nn

from vl2v.students.convolutions import quick_convolutions
from vl2v.system import has_bfloat16, reuse_freed_memory

STEPS, REPEATS = 4, 3
KINDS = ("plain", "memory", "quick")
MODELS = (
    ("tf_efficientnet_lite0", 64, 64),
    ("tf_efficientnet_lite0", 128, 64),
    ("tf_efficientnet_lite0", 224, 32),
    ("mobilenetv3_large_100", 128, 64),
)


def gradient(model: nn.Module, x: Tensor, weights: Tensor, bfloat16: bool) -> Tensor:
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        out = model(x)
    (out.float() * weights).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def made(name: str, size: int, batch: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a model, images and weights of its outputs, the same in every process."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0).eval().to(memory_format=torch.channels_last)
    x = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        return model, x, torch.randn(model(x[:2]).shape[1])


def measure(kind: str, name: str, size: int, batch: int, bfloat16: bool) -> float:
    """Return images a second."""
    if kind != "plain":
        reuse_freed_memory()
    model, x, weights = made(name, size, batch)
    if kind == "quick":
        quick_convolutions(model, size)
    gradient(model, x, weights, bfloat16)
    start = time.perf_counter()
    for _ in range(STEPS):
        gradient(model, x, weights, bfloat16)
    return STEPS * batch / (time.perf_counter() - start)


def error_of(name: str, size: int, batch: int, bfloat16: bool) -> float:
    """Return by how much quick convolutions change the gradient, relatively."""
    model, x, weights = made(name, size, batch)
    usual = gradient(model, x, weights, False)
    quick_convolutions(model, size)
    return ((usual - gradient(model, x, weights, bfloat16)).norm() / usual.norm()).item()


def main() -> None:
    print("| model, px | precision | plain img/s | freed memory used again | quick, too | gradients differ by |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, size, batch in MODELS:
        for bfloat16 in (False, True) if has_bfloat16("cpu") else (False,):
            job = name, size, batch, bfloat16
            rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
            for _ in range(REPEATS):  # in turns, so that a noisy machine is noisy to all
                for kind, found in rates.items():
                    command = [sys.executable, __file__, json.dumps([kind, *job])]
                    found.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
            plain, *others = (statistics.median(found) for found in rates.values())
            cells = " | ".join(f"{rate:.0f} ({rate / plain:.2f})" for rate in others)
            precision = "bf16" if bfloat16 else "fp32"
            print(f"| {name}, {size} | {precision} | {plain:.0f} | {cells} | {error_of(*job):.1e} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(measure(*json.loads(sys.argv[1])))
    else:
        main()
