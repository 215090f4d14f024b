"""Work of many clients, shared out fairly: nobody waits for all of another's, however much that is."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from vl2v.web.batches import Waited

Item = TypeVar("Item")
Result = TypeVar("Result")
SHARES = 8  # of a batch: what a client's turn takes at most


class Stopped(Exception):
    """The server is being stopped."""


@dataclass(eq=False)
class Job(Generic[Item, Result]):
    """What one request wants worked on.

    Attributes:
        client: whose it is.
        kind: only items of one kind share a batch.
        items: in order.
        costs: of each item.
        about: whatever `finish` has to know.
        answer: resolved with the results in order, or with what went wrong.
    """

    client: str
    kind: str
    items: Sequence[Item]
    costs: Sequence[float]
    about: Any
    answer: asyncio.Future[list[Result]]
    taken: int = 0
    results: list[Result] = field(default_factory=list)
    error: Exception | None = None

    def over(self) -> bool:
        """Whether nothing is left to do."""
        return self.error is not None or len(self.results) == len(self.items)


class Fair(Generic[Item, Result]):
    """A queue before a few threads of its own. What is taken next is of the client who has had least.

    A client's share is counted in `costs`; one who comes back after a while starts level with the others. While all
    threads work, what comes in gathers for the next batch.

    Args:
        work: answers a batch, in a thread: for each item its result, or what is wrong with it.
        most: items in a batch.
        cost: of a batch, about; an item alone may cost more.
        seconds: that a request may wait until its first item is taken.
        threads: that work.
        finish: told of jobs that are done, in the thread and before they are answered; may set their `error`.
        observe: told the size of each batch.
    """

    def __init__(
        self,
        work: Callable[[str, list[Item]], Sequence[Result | Exception]],
        *,
        most: int,
        cost: float,
        seconds: float = 30.0,
        threads: int = 1,
        finish: Callable[[list[Job[Item, Result]]], None] = lambda jobs: None,
        observe: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.work = work
        self.most = most
        self.cost = cost
        self.seconds = seconds
        self.finish = finish
        self.observe = observe
        self.queued = 0  # items
        self._jobs: dict[str, deque[Job[Item, Result]]] = {}  # by client; no empty ones
        self._had: dict[str, float] = {}  # costs of the clients who wait
        self._level = 0.0  # what the one had who was served last
        self._closed = False
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    async def ask(
        self, client: str, kind: str, items: Sequence[Item], costs: Sequence[float], about: Any = None
    ) -> Any:
        """Return the results [n] of a request, in order.

        Raises:
            Waited, Stopped: nothing was worked on, or not all of it.
            Exception: what `work` gave for an item, or `finish` as the error; the other items are dropped.
        """
        loop = asyncio.get_running_loop()
        job: Job[Item, Result] = Job(client, kind, items, costs, about, loop.create_future())
        with self._changed:
            if self._closed:
                raise Stopped("the server is being stopped")
            waiting = self._jobs.get(client)
            if waiting is None:
                self._jobs[client] = deque([job])
                self._had[client] = max(self._had.get(client, 0.0), self._level)
            else:
                waiting.append(job)
            self.queued += len(items)
            self._changed.notify()
        timer = loop.call_later(self.seconds, self._expire, job)
        try:
            return await job.answer
        except asyncio.CancelledError:  # nobody waits for it any more
            with self._changed:
                if not job.over():
                    job.error = Stopped("the server is being stopped")
                    self._drop(job)
            raise
        finally:
            timer.cancel()

    def close(self) -> None:
        """End the threads when they are done with their batches; what waits is not worked on."""
        with self._changed:
            self._closed = True
            left = [job for jobs in self._jobs.values() for job in jobs]
            self._jobs.clear()
            for job in left:
                job.error = Stopped("the server is being stopped")
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        _deliver(left)

    def _expire(self, job: Job[Item, Result]) -> None:
        with self._changed:
            if job.taken or job.over():
                return
            job.error = Waited(f"waited for {self.seconds:g} s")
            self._drop(job)
        _deliver([job])

    def _drop(self, job: Job[Item, Result]) -> None:
        """Take a job out of its queue; what is left of it isn't worked on."""
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
            self.observe(len(items))
            try:
                results: Sequence[Result | Exception] = self.work(batch[0][0].kind, items)
            except Exception as error:  # a batch that fails must not leave its clients waiting
                results = [error] * len(items)
            done = self._sorted(batch, results)
            self.finish([job for job in done if job.error is None])
            _call(done)

    def _sorted(
        self, batch: list[tuple[Job[Item, Result], int, int]], results: Sequence[Result | Exception]
    ) -> list[Job[Item, Result]]:
        """Give each job its results; return those that are done by them."""
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
        """Take items of one kind, share by share of whoever had least, up to the size and cost of a batch."""
        batch: list[tuple[Job[Item, Result], int, int]] = []
        room, cost, kind = self.most, self.cost, None
        while room > 0 and cost > 0:
            able = [c for c, jobs in self._jobs.items() if kind is None or jobs[0].kind == kind]
            if not able:
                break
            client = min(able, key=self._had.__getitem__)
            jobs = self._jobs[client]
            kind, self._level = jobs[0].kind, self._had[client]
            share, paid = max(1, min(room, self.most // SHARES)), 0.0
            while jobs and share > 0 and paid < min(cost, self.cost / SHARES) and jobs[0].kind == kind:
                job, begin = jobs[0], jobs[0].taken
                end = begin
                while end < len(job.items) and share > 0 and (paid < self.cost / SHARES):
                    paid += job.costs[end]
                    end, share, room = end + 1, share - 1, room - 1
                job.taken = end
                batch.append((job, begin, end))
                if end == len(job.items):
                    jobs.popleft()
            self._had[client] += paid
            cost -= paid
            if not jobs:
                del self._jobs[client]
        self.queued -= sum(end - begin for _, begin, end in batch)
        if not self._jobs:
            self._had = {client: had for client, had in self._had.items() if had > self._level}
        return batch


def _call(done: list[Job[Any, Any]]) -> None:
    if done:
        loop = done[0].answer.get_loop()
        with suppress(RuntimeError):  # the server has ended meanwhile
            loop.call_soon_threadsafe(_deliver, done)


def _deliver(done: Sequence[Job[Any, Any]]) -> None:
    for job in done:
        if job.answer.done():
            continue
        if job.error is not None:
            job.answer.set_exception(job.error)
        else:
            job.answer.set_result(job.results)
