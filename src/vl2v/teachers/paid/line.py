"""The line to a vendor: HTTP in a thread of its own, where every wait is limited and can be cancelled.

And how an attempt may come to nothing: what a response other than 200 says, and whether to try again.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import threading
import weakref
import zlib
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from time import time
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


WORDS = 300  # of a vendor's own words, characters that are shown
RESET = "x-ratelimit-reset"

STALE = 4  # signs that a vendor has tied something useless to an Idempotency-Key


class TryAgain(Exception):
    """An attempt that came to nothing.

    Args:
        after: seconds for which the vendor wants no request.
        counted: whether it stays on the bill.
        stale: how much it speaks for another Idempotency-Key, of `STALE`.
    """

    def __init__(self, reason: str, after: float | None = None, *, counted: bool = False, stale: int = 0) -> None:
        super().__init__(reason)
        self.after = after
        self.counted = counted
        self.stale = stale


class Rejected(Exception):
    """A request that the vendor won't take as it is: one of its items may be at fault."""


def words_of(reply: Reply) -> str:
    """Return what a vendor says of an error: OpenAI's, Cohere's or FastAPI's form, else the start of the body."""
    try:
        said = json.loads(reply.content)
    except ValueError:
        return reply.content.decode(errors="replace")[:WORDS]
    if not isinstance(said, dict):
        return str(said)
    error = said.get("error", said)
    if isinstance(error, dict):
        return " ".join(str(error[name]) for name in ("code", "message", "detail") if error.get(name)) or str(error)
    return str(error)


def retry_after(reply: Reply) -> float | None:
    """Return the seconds for which the vendor wants no request, from whichever header says so."""
    for header, read in _WAITS.items():
        if header == RESET and reply.status != 429:
            continue  # many send it with every response
        try:
            seconds = read(reply.headers[header])
        except (KeyError, ValueError, TypeError):
            continue
        if 0 < seconds < math.inf:  # with nothing to wait, all attempts would be over at once
            return seconds
    return None


def hopeless_connection(why: str) -> str:
    """Return what to do about a connection that failed for a reason that stays; "": another try may help."""
    lower = why.lower()
    if "certificate" in lower:
        return (
            f"its certificate isn't trusted ({why}): have SSL_CERT_FILE name the file of the authority that signed it, "
            "or of the certificate itself"
        )
    if "wrong_version_number" in lower or "wrong version number" in lower:
        return f"it doesn't speak TLS ({why}): its address may begin with http://"
    if "407" in why or "proxy authentication" in lower:
        return (
            f"the proxy wants a login ({why}): put user and password into HTTPS_PROXY, or leave it out for "
            "this address with NO_PROXY"
        )
    if "illegal header" in lower:
        return "the key can't be sent in a header: it has characters that no key has"
    return ""


def _moment(value: str) -> float:
    """Return the seconds until a Unix time, in seconds or milliseconds; what is too small for one is seconds."""
    number = float(value)
    number = number / 1000 if number > 1e11 else number
    return number - time() if number > 1e9 else number


def _delay(value: str) -> float:
    """Return the seconds of Retry-After: a number, or a date."""
    if value.strip().replace(".", "", 1).isdigit():
        return float(value)
    return parsedate_to_datetime(value).timestamp() - time()


_WAITS: dict[str, Callable[[str], float]] = {
    "retry-after-ms": lambda value: float(value) / 1000,
    "retry-after": _delay,
    RESET: _moment,
}
