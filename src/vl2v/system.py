"""What the machine computes on, and in which precision it is quick."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def rank() -> int:
    """Return which of the processes of one run this is, as torchrun says; 0 where there is only one."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return how many processes one run has, as torchrun says; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def processors() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def resident_bytes() -> int:
    """Return how many bytes of memory this process holds now; 0 where the system doesn't say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def available_memory() -> float:
    """Return the bytes of memory that are free, within the control group's limit; infinity where Linux doesn't say."""
    free = float("inf")
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        free = next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
        return min(free, float(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    except (OSError, ValueError, StopIteration):  # "max": no limit
        return free


@cache
def cpu_flags() -> frozenset[str]:
    """Return the CPU's instruction sets, as Linux names them; empty where they can't be read."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    return next((frozenset(line.split()) for line in text.splitlines() if line.startswith("flags")), frozenset())


@cache
def reuse_freed_memory() -> None:
    """Let this process use memory that it freed again, where the C library is glibc.

    Else glibc gives large pieces back to Linux at once, and gets them anew, zeroed page by page, for the next layer's
    outputs. Who has settings of his own (MALLOC_*) keeps them.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def best_device() -> str:
    """Return "cuda", "mps" or "cpu"."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def has_bfloat16(device: str) -> bool:
    """Return whether a device computes in bfloat16 by itself, so that it is worth using."""
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return device == "cpu" and bool(cpu_flags() & {"avx512_bf16", "amx_bf16"})
