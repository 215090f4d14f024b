"""The vendor's queue: batches are as large as they can be quickly, and nobody waits for all of another's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence

import pytest

from vl2v.vendor.fair import HOLD, FairQueue

MOST = 64


class Worker:
    """Takes as long, by a clock of its own, as a function of the number of items says."""

    def __init__(self, takes: Callable[[int], float]) -> None:
        self.takes, self.now, self.batches = takes, 0.0, []

    def __call__(self, kind: str, items: list[str]) -> Sequence[str]:
        self.batches.append(list(items))
        self.now += self.takes(len(items))
        return items

    def queue(self) -> FairQueue[str, str]:
        return FairQueue(self, most=MOST, cost=MOST, clock=lambda: self.now)


async def submit(queue: FairQueue[str, str], client: str, count: int) -> None:
    assert await queue.submit(client, "text", [client] * count, [1.0] * count) == [client] * count


@pytest.mark.parametrize(
    ("takes", "sizes"),
    [
        (lambda n: 0.02 * n, {2, 3}),  # a processor
        (lambda n: 0.001 + 0.0001 * n, {MOST}),  # an accelerator
        (lambda n: 0.06 + 0.0001 * n, {MOST}),  # a far one: small batches would gain nothing
        (lambda n: 0.3 * n, {1, 2, 3}),
    ],
)
def test_a_batch_takes_as_many_items_as_are_quick(takes: Callable[[int], float], sizes: set[int]) -> None:
    worker = Worker(takes)
    queue = worker.queue()
    asyncio.run(submit(queue, "a", 60 * MOST))
    queue.close()
    assert {len(batch) for batch in worker.batches[30:-1]} <= sizes


def test_slow_batches_shrink_and_quick_ones_grow_again() -> None:
    worker = Worker(lambda n: 0.05 * n)
    queue = worker.queue()
    asyncio.run(submit(queue, "a", 4 * MOST))
    assert len(worker.batches[-2]) <= 3
    worker.takes = lambda n: 1e-4 * n
    asyncio.run(submit(queue, "a", 8 * MOST))
    queue.close()
    assert len(worker.batches[-2]) == MOST


def test_who_comes_later_is_in_the_next_batch_and_that_is_short() -> None:
    worker = Worker(lambda n: 0.01 * n)
    begun, gate = threading.Semaphore(0), threading.Semaphore(0)
    queue = worker.queue()
    queue.work = lambda kind, items: (begun.release(), gate.acquire(), worker(kind, items))[-1]

    async def both() -> None:
        loop = asyncio.get_running_loop()
        large = asyncio.create_task(submit(queue, "large", 40 * MOST))
        for _ in range(8):
            await loop.run_in_executor(None, begun.acquire)
            gate.release()
        await loop.run_in_executor(None, begun.acquire)
        small = asyncio.create_task(submit(queue, "small", 1))
        for _ in range(2):  # turns of the event loop
            await asyncio.sleep(0)
        before = len(worker.batches)
        for _ in range(100 * MOST):
            gate.release()
        await small
        seconds = sum(worker.takes(len(batch)) for batch in worker.batches[before : before + 2])
        assert "small" in worker.batches[before + 1] and seconds <= 3 * HOLD
        await large

    asyncio.run(both())
    queue.close()
