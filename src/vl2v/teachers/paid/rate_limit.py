"""A vendor's rate limits, respected before it has to enforce them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable

MINUTE = 60.0


class RateLimit:
    """At most so many requests, items and tokens in any 60 seconds; for one event loop.

    Args:
        limits: requests, items and tokens a minute; None: no limit.
        clock: seconds.
        sleep: waits so many.
    """

    def __init__(
        self,
        *limits: int | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.limits = limits
        self._clock = clock
        self._sleep = sleep
        self._sent: deque[tuple[float, tuple[int, ...]]] = deque()
        self._not_before = 0.0

    async def wait(self, *counts: int) -> None:
        """Wait until so many requests, items and tokens may leave, and count them."""
        while (delay := self._delay(counts)) > 0:
            await self._sleep(delay)
        self._sent.append((self._clock(), counts))

    def hold(self, seconds: float) -> None:
        """Let nothing leave for a while: the vendor said so."""
        self._not_before = max(self._not_before, self._clock() + seconds)

    def _delay(self, counts: tuple[int, ...]) -> float:
        now = self._clock()
        while self._sent and self._sent[0][0] <= now - MINUTE:
            self._sent.popleft()
        delay = self._not_before - now
        for which, limit in enumerate(self.limits):
            if limit is None:
                continue
            over = sum(sent[which] for _, sent in self._sent) + counts[which] - limit
            for at, sent in self._sent:  # what has to be a minute old before there is room
                if over <= 0:
                    break
                over -= sent[which]
                delay = max(delay, at + MINUTE - now)
        return delay
