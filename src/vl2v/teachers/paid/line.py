"""The line to a vendor: HTTP in a thread of its own, where every wait is limited and can be cancelled."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
import zlib
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")

CONNECT = 10.0  # seconds
WORDS_BYTES = 64 * 1024  # of an error, as much as is read
SLOWEST = 125_000  # bytes a second at which a request leaves, at least
_PACKED = ("gzip", "x-gzip", "deflate")


class Unusable(Exception):
    """A response that can't be read."""


@dataclass(frozen=True)
class Reply:
    """A response, unpacked.

    Attributes:
        headers: by their names in lower case.
        content: the body; of an error the start.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)  # a vendor may repeat the key that it was given
    content: bytes = field(repr=False)


class Line:
    """A client of HTTP and the thread in which it works; ends with its owner, and keeps no process alive.

    Args:
        auth: what puts the key into a request; None: there is none.
        in_flight: connections, at most.
    """

    def __init__(self, owner: object, auth: Any, in_flight: int) -> None:
        import httpx2

        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._client = httpx2.AsyncClient(
            auth=auth,
            timeout=httpx2.Timeout(None, connect=CONNECT),
            limits=httpx2.Limits(max_connections=in_flight),
            headers={"Accept-Encoding": "gzip"},
            follow_redirects=False,
        )
        threading.Thread(target=_work, args=(self._loop, self._client), name="vendor", daemon=True).start()
        weakref.finalize(owner, _end, self._loop).atexit = False

    @property
    def works(self) -> bool:
        """Whether its thread is there: not in a process that was forked off since."""
        return self._pid == os.getpid()

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Do something in the thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def soon(self, call: Any, *given: Any) -> None:
        """Call something in the thread."""
        self._loop.call_soon_threadsafe(call, *given)

    async def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes = b"", *, seconds: float, most: int
    ) -> Reply:
        """Return the response to a request.

        Args:
            seconds: that all of it may take; a large request gets more.
            most: bytes that the body of a 200 may have, unpacked.

        Raises:
            TimeoutError: it took longer.
            Unusable: the body is larger, or packed in a way that can't be undone.
            httpx2.RequestError: the connection failed.
        """
        async with (
            asyncio.timeout(seconds + len(body) / SLOWEST),
            self._client.stream(method, url, content=body or None, headers=dict(headers)) as response,
        ):
            good = response.status_code == 200
            try:
                content = await _read(response, most if good else WORDS_BYTES, cut=not good)
            except zlib.error:
                raise Unusable("the response's compression is damaged") from None
            return Reply(response.status_code, response.headers, content)


async def _read(response: httpx2.Response, most: int, *, cut: bool) -> bytes:
    """Return a body of so many bytes at most; memory never holds much more, however well it is packed."""
    packing = response.headers.get("content-encoding", "identity").strip().lower()
    if packing not in ("", "identity", *_PACKED):
        raise Unusable(f"the response is compressed as {packing[:40]!r}")
    unpacker = zlib.decompressobj(47) if packing in _PACKED else None  # 47: of gzip or zlib, whichever it is
    body = bytearray()
    async for chunk in response.aiter_raw():
        room = most + 1 - len(body)
        body += chunk[:room] if unpacker is None else unpacker.decompress(chunk, room)
        if len(body) > most:
            if cut:
                break
            raise Unusable(f"a response of more than {most / 2**20:.0f} MiB")
    return bytes(body[:most])


def _work(loop: asyncio.AbstractEventLoop, client: httpx2.AsyncClient) -> None:
    loop.run_forever()
    loop.run_until_complete(client.aclose())
    loop.close()


def _end(loop: asyncio.AbstractEventLoop) -> None:
    loop.call_soon_threadsafe(loop.stop)
