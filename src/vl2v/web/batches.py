"""A queue that gathers the requests of all clients into batches for a few threads; clients take turns."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

Request = TypeVar("Request")
Result = TypeVar("Result")


class Busy(Exception):
    """The queue is full."""


class Waited(Exception):
    """A request waited in the queue for too long."""


@dataclass(eq=False)
class _Pending(Generic[Request, Result]):
    request: Request
    size: int
    client: str
    result: asyncio.Future[Result]
    taken: bool = False  # in a batch: it no longer expires


class Batches(Generic[Request, Result]):
    """A queue in front of a few threads.

    While all threads are busy, requests gather for the next batch: no timer is needed, and none waits for company.
    A batch takes one request of each client, then the next of each.

    Args:
        work: handles a batch, in a thread; returns each request's result, or its error.
        most: things in a batch; a request alone may be larger.
        waiting: things of one client that may wait (of all together: four times as many); more are refused (one request
            may be larger).
        observe: called with the size of each batch.
    """

    def __init__(
        self,
        work: Callable[[list[Request]], Sequence[Result | Exception]],
        *,
        most: int = 64,
        waiting: int = 512,
        seconds: float = 30.0,
        threads: int = 1,
        observe: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.work = work
        self.most = most
        self.waiting = waiting
        self.seconds = seconds
        self.threads = threads
        self.observe = observe
        self._queues: dict[str, deque[_Pending[Request, Result]]] = {}  # whose turn is next comes first
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="batches")
        self._workers: set[asyncio.Task[None]] = set()

    @property
    def queued(self) -> int:
        """How many things wait."""
        return sum(pending.size for queue in self._queues.values() for pending in queue)

    def full(self, size: int = 1, client: str = "") -> bool:
        """Whether a client's request of this size would be refused."""
        own = sum(pending.size for pending in self._queues.get(client, ()))
        return own + size > self.waiting if own else bool(self._queues) and self.queued + size > 4 * self.waiting

    async def submit(self, request: Request, size: int, client: str = "") -> Result:
        """Queue a request of this size and return its result.

        Raises:
            Busy, Waited: it was not handled.
            Exception: the request's error, as `work` returned it.
        """
        if self.full(size, client):
            raise Busy("too many requests are waiting")
        loop = asyncio.get_running_loop()
        pending: _Pending[Request, Result] = _Pending(request, size, client, loop.create_future())
        self._queues.setdefault(client, deque()).append(pending)
        if len(self._workers) < self.threads:
            worker = asyncio.create_task(self._work())
            self._workers.add(worker)
        timer = loop.call_later(self.seconds, self._expire, pending)
        try:
            return await asyncio.shield(pending.result)
        finally:
            timer.cancel()

    def close(self) -> None:
        """Stop the threads once they have finished."""
        self._pool.shutdown()

    def _expire(self, pending: _Pending[Request, Result]) -> None:
        if not pending.taken and not pending.result.done():
            queue = self._queues[pending.client]
            queue.remove(pending)
            if not queue:
                del self._queues[pending.client]
            pending.result.set_exception(Waited(f"waited for {self.seconds:g} s"))

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._queues:
                batch = self._next_batch()
                self.observe(sum(pending.size for pending in batch))
                results = await loop.run_in_executor(self._pool, self._results, [pending.request for pending in batch])
                for pending, result in zip(batch, results, strict=True):
                    if isinstance(result, Exception):
                        pending.result.set_exception(result)
                    else:
                        pending.result.set_result(result)
        finally:  # at once: a request that arrives after the queue's last check starts a worker of its own
            self._workers.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    def _results(self, requests: list[Request]) -> Sequence[Result | Exception]:
        try:
            return self.work(requests)
        except Exception as error:  # a batch that fails must not leave its clients waiting
            return [error] * len(requests)

    def _next_batch(self) -> list[_Pending[Request, Result]]:
        """Take the first requests, up to the size of a batch, and no more than this thread's share."""
        most, size = min(self.most, -(-self.queued // self.threads)), 0
        batch: list[_Pending[Request, Result]] = []
        while self._queues:
            client, queue = next(iter(self._queues.items()))
            size += queue[0].size
            if batch and size > most:
                break
            batch.append(queue.popleft())
            del self._queues[client]
            if queue:
                self._queues[client] = queue  # behind the others
        for pending in batch:
            pending.taken = True
        return batch
