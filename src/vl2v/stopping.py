"""Ctrl-C and SIGTERM: what costs money ends at once, but in order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn


class Stopped(KeyboardInterrupt):
    """Ctrl-C, after what was in flight has been brought to an end."""


class Terminated(SystemExit):
    """SIGTERM, likewise; the process ends with the exit code that a shell gives such a one."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


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
        raise Terminated if self.signal == signal.SIGTERM else Stopped


@contextmanager
def heeding() -> Iterator[Stop]:
    """Note a first Ctrl-C or SIGTERM instead of being torn out of the block; a second one ends it at once.

    Handlers of others are called as well. Signals that are ignored stay so, and threads but the main one get none.
    """
    stop = Stop()
    before: dict[int, Any] = {}

    def hear(number: int, frame: FrameType | None) -> None:
        first, stop.signal = stop.signal is None, stop.signal or number
        previous = before[number]
        if callable(previous) and previous is not signal.default_int_handler:
            previous(number, frame)
        if not first:
            stop.end()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            previous = signal.getsignal(number)
            if previous not in (None, signal.SIG_IGN):
                before[number] = previous
                signal.signal(number, hear)
    try:
        yield stop
    finally:
        for taken, previous in before.items():
            if signal.getsignal(taken) is hear:
                with suppress(ValueError):  # a generator that another thread closes
                    signal.signal(taken, previous)


@contextmanager
def sigterm_raised() -> Iterator[None]:
    """Let SIGTERM unwind the block, where nobody else sees to it: a process with helpers has to end them."""

    def hear(number: int, frame: FrameType | None) -> NoReturn:
        raise Terminated

    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, hear)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
