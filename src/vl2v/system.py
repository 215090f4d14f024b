"""What the machine computes on, and in which precision it is quick."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

CONTROL_GROUP = Path("/sys/fs/cgroup")
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


@contextmanager
def without_logs() -> Iterator[None]:
    """Log nothing of libraries while weights are fetched: each retry would be a line, and what fails is raised."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


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


def peak_bytes() -> int:
    """Return how many bytes of memory this process has held at its height; 0 where the system doesn't say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, ValueError, StopIteration):
        return 0


def available_memory() -> float:
    """Return the bytes of memory that are free, within the control group's limit; infinity where Linux doesn't say."""
    free = float("inf")
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        free = next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
        limit, used, parts = (
            (CONTROL_GROUP / name).read_text(encoding="utf-8")
            for name in ("memory.max", "memory.current", "memory.stat")
        )
        files = next(float(line.split()[1]) for line in parts.splitlines() if line.startswith("inactive_file "))
        return min(free, max(0.0, float(limit) - float(used) + files))  # cached files make room
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


class Stopped(KeyboardInterrupt):
    """Ctrl-C, after what was in flight has been brought to an end."""


class Terminated(SystemExit):
    """SIGTERM; the process ends with the exit code that a shell gives such a one.

    Attributes:
        reported: whether a line has said what was in flight, and how to resume.
    """

    def __init__(self, *, reported: bool = False) -> None:
        super().__init__(128 + signal.SIGTERM)
        self.reported = reported


class Stop:
    """Whether somebody wants an end, and who.

    Attributes:
        signal: that came first; None: none yet.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    @property
    def wanted(self) -> bool:
        """Whether a signal came, or the main thread is over and the process waits for this one."""
        return self.signal is not None or not threading.main_thread().is_alive()

    def end(self) -> NoReturn:
        """Raise the signal's exception."""
        raise Terminated(reported=True) if self.signal == signal.SIGTERM else Stopped


@contextmanager
def heeding() -> Iterator[Stop]:
    """Note a first Ctrl-C or SIGTERM instead of being torn out of the block; a second one ends it at once.

    Handlers of others are called as well. Signals that are ignored stay so, and threads but the main one get none.
    """
    stop = Stop()
    before: dict[int, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        first, stop.signal = stop.signal is None, stop.signal or number
        previous = before[number]
        if callable(previous) and previous not in (signal.default_int_handler, _raise):
            previous(number, frame)
        if not first:
            stop.end()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            previous = signal.getsignal(number)
            if previous not in (None, signal.SIG_IGN):
                before[number] = previous
                signal.signal(number, handle)
    try:
        yield stop
    finally:
        for taken, previous in before.items():
            if signal.getsignal(taken) is handle:
                with suppress(ValueError):  # a generator that another thread closes
                    signal.signal(taken, previous)


_raised: int | None = None  # the signal that was raised, while `signals_raised` lasts


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    global _raised
    _raised = number
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


@contextmanager
def signals_raised() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM unwind the block, where nobody else sees to them; see `raise_dropped_signal`.

    A process with helpers, or with something to say, has to end in order.
    """
    global _raised
    _raised = None
    ours = {}
    if threading.current_thread() is threading.main_thread():
        defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
        ours = {number: usual for number, usual in defaults.items() if signal.getsignal(number) == usual}
    for number in ours:
        signal.signal(number, _raise)
    try:
        yield
    finally:
        for number, usual in ours.items():
            signal.signal(number, usual)
        _raised = None


_ENDING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def signals_held() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait until the block is over; processes that it forks have to `release_signals`."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def release_signals() -> None:
    """Let no Ctrl-C and no SIGTERM wait any longer in this process."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)


def raise_dropped_signal() -> None:
    """Raise a signal's exception again that Python dropped, as it does in `__del__`."""
    if _raised is not None:
        _raise(_raised, None)
