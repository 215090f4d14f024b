from __future__ import annotations

import asyncio

from vl2v.teachers.paid.limits import RateLimit


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


def paced(*limits: int | None) -> tuple[RateLimit, Clock]:
    clock = Clock()
    return RateLimit(*limits, clock=clock, sleep=clock.sleep), clock


def test_no_minute_has_more_than_the_limit() -> None:
    rate_limit, clock = paced(10, None, 1000)
    times = []
    for _ in range(35):
        asyncio.run(rate_limit.wait(1, 5, 30))
        times.append(clock.now)
    assert times[9] == 0 and times[10] == 60 and times[34] == 180
    assert all(sum(t - 60 < other <= t for other in times) <= 10 for t in times)


def test_tokens_count_too() -> None:
    rate_limit, clock = paced(None, None, 100)
    for tokens in (60, 40, 50):
        asyncio.run(rate_limit.wait(1, 1, tokens))
    assert clock.now == 60


def test_the_vendors_word_counts_for_all() -> None:
    rate_limit, clock = paced(None)
    rate_limit.hold(7)
    rate_limit.hold(3)
    asyncio.run(rate_limit.wait(1))
    assert clock.now == 7
