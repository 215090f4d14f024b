"""What it brings that a process uses memory again that it freed; ratios within one run.

    python benchmarks/memory.py

EfficientNet-Lite0 at 64 px, one thread each: a training step of 32 images, and the forward pass of 64, in a process
of its own that does or doesn't call `reuse_freed_memory`; the median of five turns, and the most memory that was used.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

TURNS, TIMES = 5, 10


def main() -> None:
    turns = [[one(reused) for reused in (False, True)] for _ in range(TURNS)]
    for number, what in enumerate(("training, ms an image", "inference, ms an image", "peak memory, MB")):
        usual, reused = (statistics.median(turn[way][number] for turn in turns) for way in (0, 1))
        print(f"{what}: {usual:.2f} as usual, {reused:.2f} with memory used again, {usual / reused:.2f} times")


def one(reused: bool) -> list[float]:
    """Return the figures of one process."""
    command = [sys.executable, __file__, "reused" if reused else "usual"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return [float(number) for number in done.stdout.split()]


def measure(way: str) -> None:
    import timm
    import torch

    from vl2v.students.convolutions import quick_convolutions
    from vl2v.system import reuse_freed_memory

    if way == "reused":
        reuse_freed_memory()
    model = timm.create_model("tf_efficientnet_lite0", num_classes=0).to(memory_format=torch.channels_last).eval()
    quick_convolutions(model, 64)
    x = torch.randn(64, 3, 64, 64).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def infer() -> None:
        model(x)

    print(milliseconds(lambda: model(x[:32]).sum().backward()) / 32, milliseconds(infer) / 64)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def milliseconds(work: Callable[[], None]) -> float:
    times = []
    for _ in range(TIMES):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


if __name__ == "__main__":
    measure(sys.argv[1]) if sys.argv[1:] else main()
