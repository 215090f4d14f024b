"""Requests of all clients, gathered into batches for a few threads of work; clients take turns."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

Request = TypeVar("Request")
Answer = TypeVar("Answer")


class Busy(Exception):
    """The queue is full."""


class Waited(Exception):
    """A request waited in the queue for too long."""


@dataclass(eq=False)
class _Place(Generic[Request, Answer]):
    request: Request
    size: int
    client: str
    answer: asyncio.Future[Answer]
    taken: bool = False  # it is being worked on, and will be answered


class Batches(Generic[Request, Answer]):
    """A queue before a few threads.

    While all threads work, what comes in gathers for the next batch: no timer is needed, and nobody waits for company.
    A batch takes one request of each client, then the next of each.

    Args:
        work: answers a batch, in a thread: for each request its answer, or what is wrong with it.
        most: things in a batch; a request alone may be larger.
        waiting: things of a client that may wait, of all four times as many; more are turned away (a request alone
            may be larger).
        seconds: that a request may wait for its turn.
        threads: that work.
        observe: told the size of each batch.
        kind: only neighbours of one kind share a batch.
    """

    def __init__(
        self,
        work: Callable[[list[Request]], Sequence[Answer | Exception]],
        *,
        most: int = 64,
        waiting: int = 512,
        seconds: float = 30.0,
        threads: int = 1,
        observe: Callable[[int], None] = lambda size: None,
        kind: Callable[[Request], object] = lambda request: None,
    ) -> None:
        self.work = work
        self.most = most
        self.waiting = waiting
        self.seconds = seconds
        self.threads = threads
        self.observe = observe
        self.kind = kind
        self._queues: dict[str, deque[_Place[Request, Answer]]] = {}  # whose turn is next comes first
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="batches")
        self._workers: set[asyncio.Task[None]] = set()

    @property
    def queued(self) -> int:
        """How many things wait."""
        return sum(place.size for queue in self._queues.values() for place in queue)

    def full(self, size: int = 1, client: str = "") -> bool:
        """Whether a client's request of so many things would be turned away."""
        own = sum(place.size for place in self._queues.get(client, ()))
        return own + size > self.waiting if own else bool(self._queues) and self.queued + size > 4 * self.waiting

    async def ask(self, request: Request, size: int, client: str = "") -> Answer:
        """Return the answer to a request of so many things.

        Raises:
            Busy, Waited: it was not worked on.
            Exception: what `work` gave as the answer.
        """
        if self.full(size, client):
            raise Busy("too many requests are waiting")
        loop = asyncio.get_running_loop()
        place: _Place[Request, Answer] = _Place(request, size, client, loop.create_future())
        self._queues.setdefault(client, deque()).append(place)
        if len(self._workers) < self.threads:
            worker = asyncio.create_task(self._work())
            self._workers.add(worker)
        timer = loop.call_later(self.seconds, self._expire, place)
        try:
            return await asyncio.shield(place.answer)
        finally:
            timer.cancel()

    def close(self) -> None:
        """End the threads, when they are done."""
        self._pool.shutdown()

    def _expire(self, place: _Place[Request, Answer]) -> None:
        if not place.taken and not place.answer.done():
            queue = self._queues[place.client]
            queue.remove(place)
            if not queue:
                del self._queues[place.client]
            place.answer.set_exception(Waited(f"waited for {self.seconds:g} s"))

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._queues:
                batch = self._next_batch()
                self.observe(sum(place.size for place in batch))
                results = await loop.run_in_executor(self._pool, self._answers, [place.request for place in batch])
                for place, result in zip(batch, results, strict=True):
                    if isinstance(result, Exception):
                        place.answer.set_exception(result)
                    else:
                        place.answer.set_result(result)
        finally:  # at once: a request that comes after the last look at the queue starts a worker of its own
            self._workers.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    def _answers(self, requests: list[Request]) -> Sequence[Answer | Exception]:
        try:
            return self.work(requests)
        except Exception as error:  # a batch that fails must not leave its clients waiting
            return [error] * len(requests)

    def _next_batch(self) -> list[_Place[Request, Answer]]:
        """Take the first requests of one kind, up to the size of a batch, and no more than this thread's share."""
        most, size = min(self.most, -(-self.queued // self.threads)), 0
        batch: list[_Place[Request, Answer]] = []
        while self._queues:
            client, queue = next(iter(self._queues.items()))
            size += queue[0].size
            if batch and (size > most or self.kind(queue[0].request) != self.kind(batch[0].request)):
                break
            batch.append(queue.popleft())
            del self._queues[client]
            if queue:
                self._queues[client] = queue  # behind the others
        for place in batch:
            place.taken = True
        return batch
