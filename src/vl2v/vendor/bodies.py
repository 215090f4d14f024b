"""Bodies of requests: bounded in size, in time, in pace, and in what is in memory of all at once."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

from vl2v.vendor.requests import BODY, Refusal

SECONDS = 60.0  # in which a body has to arrive
TOGETHER = 512 * 2**20  # bytes of bodies in memory
SHARE = 128 * 2**20  # of them, per client
FREE, PACE = 2**20, 32 * 2**20  # bytes of a client's bodies: read at once, and per second beyond


class Gone(Exception):
    """The client has left in the middle of its body."""


class Bodies:
    """Reads bodies. One timer ends those that take too long: most are there at once."""

    def __init__(self) -> None:
        self._held: dict[str, int] = defaultdict(int)  # bytes by client
        self._together = 0
        self._paced: dict[str, float] = {}  # when a client's bodies would have arrived at PACE
        self._due: dict[asyncio.Task[Any], float] = {}  # in the order in which they are due
        self._late: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def read(self, client: str, receive: Any, parts: list[bytes]) -> bytes:
        """Return a body; its parts count as the client's until they are released.

        Raises:
            Refusal: it is too large or too slow, or too much is being sent at once.
            Gone: the client has left.
        """
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        self._due[task] = loop.time() + SECONDS
        if self._timer is None:
            self._timer = loop.call_later(SECONDS, self._end_late, loop)
        left = BODY
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                part: bytes = message.get("body", b"")
                parts.append(part)
                left -= len(part)
                self._hold(client, len(part))
                if left < 0:
                    raise too_large()
                ahead = self._ahead(client, len(part), loop.time())
                if ahead > FREE / PACE:  # so that the event loop is free for others
                    await asyncio.sleep(ahead)
                if not message.get("more_body", False):
                    return part if len(parts) == 1 else b"".join(parts)
        except asyncio.CancelledError:
            if task in self._late and not task.uncancel():
                words = f"the body took over {SECONDS:g} s"
                raise Refusal(408, words, "too_slow", headers={"Connection": "close"}) from None
            raise
        finally:
            self._late.discard(task)
            self._due.pop(task, None)

    def release(self, client: str, parts: list[bytes]) -> None:
        """Count parts of a body no longer."""
        size = sum(map(len, parts))
        self._held[client] -= size
        self._together -= size

    def _hold(self, client: str, size: int) -> None:
        """Count bytes of a body.

        Raises:
            Refusal: too much is being sent at once.
        """
        self._held[client] += size
        self._together += size
        if self._held[client] > SHARE or self._together > TOGETHER:
            headers = {"Retry-After": "1", "Connection": "close"}
            raise Refusal(429, "too much is being sent, try again", "overloaded", headers=headers)

    def _ahead(self, client: str, size: int, now: float) -> float:
        """Return by how many seconds a client is ahead of its pace, with these bytes."""
        due = self._paced[client] = max(now, self._paced.get(client, now)) + size / PACE
        return due - now

    def _end_late(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        for task, due in [*self._due.items()]:
            if due > loop.time():
                self._timer = loop.call_at(due, self._end_late, loop)
                return
            del self._due[task]
            self._late.add(task)
            task.cancel()


def too_large() -> Refusal:
    """Return the refusal of a body that is too large."""
    return Refusal(413, f"at most {BODY} bytes a request", "too_large", headers={"Connection": "close"})
