"""A fair queue: the work of many clients in small batches, so that nobody waits for all of another's."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from weakref import ref

from vl2v.web.batches import Waited

Item = TypeVar("Item")
Result = TypeVar("Result")
SHARES = 8  # a client's turn takes at most this part of a batch
HOLD = 0.05  # seconds that a batch should take at most (thrice those of a single item): what comes in waits for it


class Stopped(Exception):
    """The server is being stopped."""


@dataclass(eq=False, slots=True, weakref_slot=True)
class Job(Generic[Item, Result]):
    """The items of one request.

    Attributes:
        kind: only items of one kind share a batch.
        items: in order.
        context: passed through to `finish`.
        future: resolved with the results in order, or with the error.
        taken: items that were put into a batch.
        error: of an item, or of `finish`.
        value: in place of the results, where `finish` makes one of them.
    """

    client: str
    kind: str
    items: Sequence[Item]
    costs: Sequence[float]
    context: Any
    future: asyncio.Future[Any]
    taken: int = 0
    results: list[Result] = field(default_factory=list)
    error: Exception | None = None
    value: Any = None

    def over(self) -> bool:
        """Whether nothing is left to do."""
        return self.error is not None or len(self.results) == len(self.items)


def _waits(job: Job[Any, Any] | None) -> bool:
    return job is not None and not job.future.done()


class FairQueue(Generic[Item, Result]):
    """A queue with a worker thread of its own; the client that was served least goes first.

    Service is counted in `costs`; a client that returns after a while starts level with the others. While the thread
    works, what comes in gathers for the next batch. Batches that take longer than `HOLD` seconds are followed by
    smaller ones, so that a client who sends little waits for little, whatever the others send; and quick ones by larger
    ones, up to `most` and `cost`.

    Args:
        work: processes a batch, in a thread; returns for each item its result or its error.
        most: items in a batch, at most.
        cost: of a batch, about; a single item may cost more.
        seconds: that a request may wait until its first item is taken.
        finish: called with finished jobs, in the thread and before they are resolved; may set their `error` or `value`.
        observe: called with the size of each batch.
        clock: seconds.
    """

    def __init__(
        self,
        work: Callable[[str, list[Item]], Sequence[Result | Exception]],
        *,
        most: int,
        cost: float,
        seconds: float = 30.0,
        finish: Callable[[list[Job[Item, Result]]], None] = lambda jobs: None,
        observe: Callable[[int], None] = lambda size: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.work = work
        self.most = most
        self.cost = cost
        self.seconds = seconds
        self.finish = finish
        self.observe = observe
        self.clock = clock
        self.queued = 0  # items
        self._jobs: dict[str, deque[Job[Item, Result]]] = {}  # by client; no empty ones
        self._served: dict[str, float] = {}  # cost, by waiting client
        self._level = 0.0  # cost of the client that was served last
        self._limits: dict[str, float] = {}  # cost of a batch that takes `HOLD` seconds, by kind
        self._alone: dict[str, float] = {}  # seconds of the quickest of the latest batches of one item, by kind
        self._arrived: list[Job[Item, Result]] = []  # in this turn of the event loop
        self._due: deque[tuple[float, ref[Job[Item, Result]]]] = deque()  # until when each may wait, in order
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    async def submit(
        self, client: str, kind: str, items: Sequence[Item], costs: Sequence[float], context: Any = None
    ) -> Any:
        """Return the results [n] of a request, in order.

        Raises:
            Waited, Stopped: it was not processed, or only in part.
            Exception: the error of an item or from `finish`; the other items are dropped.
        """
        loop = asyncio.get_running_loop()
        job: Job[Item, Result] = Job(client, kind, items, costs, context, loop.create_future())
        if not self._arrived:
            loop.call_soon(self._enqueue, loop)
        self._arrived.append(job)
        try:
            return await job.future
        except asyncio.CancelledError:  # the client has left
            with self._changed:
                if not job.over():
                    job.error = Stopped("the server is being stopped")
                    self._drop(job)
            raise
        finally:
            del job  # a failure must not hold its own frame, and with it the items

    def _enqueue(self, loop: asyncio.AbstractEventLoop) -> None:
        """Put what arrived in one turn of the event loop into the queue: the thread is woken once for all of it."""
        arrived, self._arrived = self._arrived, []
        due = loop.time() + self.seconds
        with self._changed:
            for job in arrived:
                if job.over():
                    continue
                if self._closed:
                    job.error = Stopped("the server is being stopped")
                    continue
                waiting = self._jobs.get(job.client)
                if waiting is None:
                    self._jobs[job.client] = deque([job])
                    self._served[job.client] = max(self._served.get(job.client, 0.0), self._level)
                else:
                    waiting.append(job)
                self.queued += len(job.items)
            self._changed.notify()
        _deliver([job for job in arrived if job.error is not None])
        while self._due and not _waits(self._due[0][1]()):
            self._due.popleft()
        self._due.extend((due, ref(job)) for job in arrived)
        if self._timer is None:
            self._timer = loop.call_at(due, self._expire, loop)

    def close(self) -> None:
        """Stop the threads once their batches are done; what still waits fails with `Stopped`."""
        with self._changed:
            self._closed = True
            left = [job for jobs in self._jobs.values() for job in jobs]
            self._jobs.clear()
            for job in left:
                job.error = Stopped("the server is being stopped")
            self._changed.notify_all()
        self._thread.join()
        _deliver(left)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give up what has waited for too long; one timer is for all."""
        self._timer, due = None, []
        while self._due and (not _waits(self._due[0][1]()) or self._due[0][0] <= loop.time()):
            due.append(self._due.popleft()[1]())
        with self._changed:
            late = [job for job in due if job is not None and not job.taken and not job.over()]
            for job in late:
                job.error = Waited(f"waited for {self.seconds:g} s")
                self._drop(job)
        _deliver(late)
        if self._due:
            self._timer = loop.call_at(self._due[0][0], self._expire, loop)

    def _drop(self, job: Job[Item, Result]) -> None:
        """Remove a job from its queue, with the items that are left of it."""
        waiting = self._jobs.get(job.client)
        if waiting is not None and job in waiting:
            waiting.remove(job)
            self.queued -= len(job.items) - job.taken
            if not waiting:
                del self._jobs[job.client]

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                batch = self._take()
            items = [job.items[i] for job, begin, end in batch for i in range(begin, end)]
            kind, begun = batch[0][0].kind, self.clock()
            self.observe(len(items))
            try:
                results: Sequence[Result | Exception] = self.work(kind, items)
            except Exception as error:  # a batch that fails must not leave its clients waiting
                results = [error] * len(items)
            cost = sum(job.costs[i] for job, begin, end in batch for i in range(begin, end))
            self._adjust(kind, len(items), cost, self.clock() - begun)
            done = self._sorted(batch, results)
            self.finish([job for job in done if job.error is None])
            _call(done)
            del batch, items, results, done  # not to be held until the next batch, nor by a failure's traceback

    def _adjust(self, kind: str, items: int, cost: float, seconds: float) -> None:
        """Choose the cost of the next batches of a kind, after one took so many seconds."""
        with self._changed:
            alone = self._alone.get(kind, 0.0)
            if items == 1:
                alone = self._alone[kind] = min(seconds, 1.1 * alone or seconds)
            limit, hold = self._limits.get(kind, self.cost), max(HOLD, 3 * alone)
            if seconds > hold:
                limit = max(min(cost, limit) * hold / seconds, limit / 4)
            elif seconds < hold / 2 and cost > limit / 2:
                limit = min(2 * limit, self.cost)
            self._limits[kind] = limit

    def _sorted(
        self, batch: list[tuple[Job[Item, Result], int, int]], results: Sequence[Result | Exception]
    ) -> list[Job[Item, Result]]:
        """Distribute the results; return the jobs that they finish."""
        done, at = [], 0
        with self._changed:
            for job, begin, end in batch:
                mine, at = results[at : at + end - begin], at + end - begin
                if job.over():
                    continue
                for result in mine:
                    if isinstance(result, Exception):
                        job.error = result
                        self._drop(job)
                        break
                    job.results.append(result)
                if job.over():
                    done.append(job)
        return done

    def _take(self) -> list[tuple[Job[Item, Result], int, int]]:
        """Take items of one kind, turn by turn of the client that was served least, up to the limits of a batch."""
        batch: list[tuple[Job[Item, Result], int, int]] = []
        room, kind, limit, cost = self.most, None, self.cost, 0.0
        while room > 0 and cost < limit:
            able = [c for c, jobs in self._jobs.items() if kind is None or jobs[0].kind == kind]
            if not able:
                break
            client = min(able, key=self._served.__getitem__)
            jobs = self._jobs[client]
            if kind is None:
                kind = jobs[0].kind
                limit = self._limits.get(kind, self.cost)
            self._level = self._served[client]
            count, spent = max(1, min(room, self.most // SHARES)), 0.0
            while jobs and count > 0 and spent < limit / SHARES and cost + spent < limit and jobs[0].kind == kind:
                job, begin = jobs[0], jobs[0].taken
                end = begin
                while end < len(job.items) and count > 0 and spent < limit / SHARES:
                    spent += job.costs[end]
                    end, count, room = end + 1, count - 1, room - 1
                job.taken = end
                batch.append((job, begin, end))
                if end == len(job.items):
                    jobs.popleft()
            self._served[client] += spent
            cost += spent
            if not jobs:
                del self._jobs[client]
        self.queued -= sum(end - begin for _, begin, end in batch)
        if not self._jobs:
            self._served = {client: served for client, served in self._served.items() if served > self._level}
        return batch


def _call(done: list[Job[Any, Any]]) -> None:
    if done:
        loop = done[0].future.get_loop()
        with suppress(RuntimeError):  # the server has ended meanwhile
            loop.call_soon_threadsafe(_deliver, done)


def _deliver(done: Sequence[Job[Any, Any]]) -> None:
    for job in done:
        if job.future.done():
            continue
        if job.error is not None:
            job.future.set_exception(job.error)
        else:
            job.future.set_result(job.results if job.value is None else job.value)
