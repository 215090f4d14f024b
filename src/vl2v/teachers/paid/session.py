"""One round of queries: several requests in flight, and an end that is in order whatever it comes from."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from vl2v.errors import TeacherError, VL2VError
from vl2v.teachers.paid.line import Line
from vl2v.teachers.paid.teacher import BudgetReached, Embedded, Refused, money

B = TypeVar("B")
Outcome = tuple[list[Embedded | Refused], Exception | None]
"""What came of a request, and what ends the session."""

GRACE = 1.0  # seconds in which what is in flight may still arrive when somebody wants an end
TICK = 0.1  # seconds between two checks whether somebody does


class Session:
    """The requests of one round."""

    def __init__(self, line: Line, stop: Callable[[], bool]) -> None:
        self.over = False  # nothing more may leave
        self.stopped = False  # because somebody wants it so
        self.received = 0  # requests, since
        self.broken: list[int] = []  # what those may cost that were broken off
        self._line = line
        self._stop = stop
        self._running: set[Future[Outcome]] = set()
        self._tasks: set[asyncio.Task[Any]] = set()  # these two belong to the line's thread
        self._sending: set[asyncio.Task[Any]] = set()

    def run(
        self, batches: Iterator[B], send: Callable[[B], Coroutine[Any, Any, Outcome]], first: int, room: int
    ) -> Iterator[Embedded | Refused]:
        """Yield what comes; raise the first error when all that is in flight, and so is paid for, has been yielded.

        Args:
            send: sends one and returns its outcome.
            first: how many are in flight until one has ended.
            room: and after that.
        """
        trouble = _Trouble()
        with closing(trouble), closing(self):
            while True:
                try:
                    while trouble.error is None and len(self._running) < first and (batch := self._next(batches)):
                        self._running.add(self._line.start(send(batch)))
                    self._check()
                    done = wait(self._running, TICK, FIRST_COMPLETED).done
                except (Exception, KeyboardInterrupt, SystemExit) as error:
                    trouble.add(error)
                    if not isinstance(error, Exception):
                        self.end(GRACE)
                    continue
                if not self._running:
                    break
                self._running -= done
                for future in done:
                    found, wrong = ([], None) if future.cancelled() else future.result()
                    trouble.add(wrong)
                    if isinstance(wrong, TeacherError) and not isinstance(wrong, BudgetReached):
                        self.end(None)  # others that wait would only meet the same
                    self.received += self.stopped and sum(isinstance(each, Embedded) for each in found)
                    yield from map(trouble.patient, found)
                first = room if done else first
        if trouble.error is not None:
            raise trouble.error

    def end(self, grace: float | None) -> None:
        """Let nothing more leave, and break off after so many seconds (None: never) what is in flight."""
        self.over = True
        self._line.soon(self._end, grace)

    def close(self) -> None:
        """End it, whatever is in flight."""
        if self._running:
            self.end(GRACE)
            wait(self._running, 2 * GRACE)

    def words(self, currency: str, bill: str) -> str:
        """Return what is said of a session that somebody ended."""
        parts = ["stopped: nothing more was sent"]
        if self.received:
            parts.append(f"{self.received} in flight arrived and {_are(self.received)} saved")
        if self.broken:
            most = money(sum(self.broken), currency)
            parts.append(
                f"{len(self.broken)} in flight {_are(len(self.broken))} broken off and may have been billed "
                f"({most}, counted)"
            )
        return f"{', '.join(parts)}; the bill so far: {bill}; the same command resumes"

    # In the line's thread

    @contextmanager
    def task(self) -> Iterator[None]:
        """While the block lasts, the current task is one of this session's; it may be cancelled."""
        task = _current()
        self._tasks.add(task)
        try:
            yield
        finally:
            self._tasks.discard(task)

    @contextmanager
    def in_flight(self, micro: int) -> Iterator[None]:
        """While the block lasts, the current task has a request in flight that may cost so much."""
        task = _current()
        self._sending.add(task)
        try:
            yield
        except asyncio.CancelledError:
            self.broken.append(micro)
            raise
        finally:
            self._sending.discard(task)

    def _end(self, grace: float | None) -> None:
        for task in self._tasks - self._sending:
            task.cancel()
        if grace is not None:
            asyncio.get_running_loop().call_later(grace, self._break)

    def _break(self) -> None:
        for task in self._tasks:
            task.cancel()

    # In the caller's thread

    def _next(self, batches: Iterator[B]) -> B | None:
        """Return the next request, unless somebody wants an end: reading takes its time."""
        if self._check():
            return None
        batch = next(batches, None)
        return None if self._check() else batch

    def _check(self) -> bool:
        if not self.stopped and self._stop():
            self.stopped = True
            self.end(GRACE)
        return self.over


class _Trouble:
    """The first error of a session; it waits until all that is in flight has been handed on."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.over = False

    def close(self) -> None:
        self.over = True

    def add(self, error: BaseException | None) -> None:
        self.error = self.error or error

    def patient(self, reply: Embedded | Refused) -> Embedded | Refused:
        """Return the reply such that an error in settling it waits, too."""
        return replace(reply, settle=self._patient(reply.settle)) if isinstance(reply, Embedded) else reply

    def _patient(self, settle: Callable[[], None]) -> Callable[[], None]:
        def settled() -> None:
            try:
                settle()
            except VL2VError as error:
                if self.over:
                    raise
                self.add(error)

        return settled


def _current() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
