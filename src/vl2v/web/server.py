"""The server: slow and silent clients are disconnected, connections and the log are bounded, stopping is quick.

And the Prometheus metrics that every server of ours has.
"""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import logging
import os
import socket
import sys
import time
from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import accumulate
from types import FrameType
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString

from vl2v.errors import ConfigError
from vl2v.system import Terminated

if TYPE_CHECKING:
    import uvicorn


HEADER_SECONDS = 5.0  # for all headers of a request, since the connection or their first byte
READ_SECONDS = 15.0  # in which a client has to read READ_BYTES of a long response
READ_BYTES = 2**16
GRACE = 8.0  # seconds for accepted requests after a stop; containers are killed after 10
CONNECTIONS = 4096
SPARE = 128  # file descriptors for everything else
LOG_BYTES = 2**16  # a minute


def listen(
    app: Any, host: str, port: int, announce: Callable[[str], None], stopping: Callable[[], None] = lambda: None
) -> None:
    """Serve until SIGTERM or SIGINT; requests that were accepted are answered first.

    Args:
        host: an IP address, or localhost.
        port: 0 takes a free one.
        announce: called with the address.
        stopping: called on SIGTERM or SIGINT.

    Raises:
        ConfigError: nothing can be listened on there.
    """
    import uvicorn

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            stopping()
            super().handle_exit(sig, frame)

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        bound = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise ConfigError(f"--host {host} --port {port}: can't be listened on ({reason}); choose others") from None
    handler = BoundedHandler()
    logging.getLogger().addHandler(handler)
    try:
        with bound, suppress(KeyboardInterrupt, Terminated):  # which uvicorn raises once more
            name = f"[{host}]" if family == socket.AF_INET6 else host
            announce(f"http://{name}:{bound.getsockname()[1]}")
            Server(configured(app)).run([bound])
    finally:
        logging.getLogger().removeHandler(handler)


def configured(app: Any, **options: Any) -> uvicorn.Config:
    """Return our configuration of uvicorn; `options` override it."""
    import uvicorn

    ours: dict[str, Any] = {
        "http": _protocol(_connections()),
        "ws": "none",
        "log_config": None,
        "access_log": False,
        "proxy_headers": False,
        "server_header": False,
        "timeout_graceful_shutdown": GRACE,
    }
    config = uvicorn.Config(app, **{**ours, **options})
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("uvicorn.access").propagate = False
    return config


def _connections() -> int:
    """Return how many connections may be open, after raising the limit of file descriptors where that is allowed."""
    try:
        import resource
    except ImportError:  # not a Unix
        return CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + SPARE
    if soft != resource.RLIM_INFINITY and soft < wanted:
        more = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
            soft = more
        return max(16, min(CONNECTIONS, soft - SPARE))
    return CONNECTIONS


def _protocol(most: int) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol with deadlines, for one server of at most so many connections."""
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    waiting: dict[Any, None] = {}  # connections without a request, the longest waiting first

    class Protocol(HttpToolsProtocol):
        _headers: asyncio.TimerHandle | None = None
        _reading: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            waiting[self] = None
            self._expect_headers()
            if len(self.connections) > most:  # those that have sent nothing yet go first
                next(iter(waiting)).transport.abort()

        def connection_lost(self, exc: Exception | None) -> None:
            waiting.pop(self, None)
            self._cancel()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self in waiting and self._headers is None and not self.transport.is_closing():
                self._expect_headers()

        def on_headers_complete(self) -> None:
            waiting.pop(self, None)
            if self._headers is not None:
                self._headers.cancel()
                self._headers = None
            super().on_headers_complete()

        def on_response_complete(self) -> None:
            if not self.pipeline:
                waiting[self] = None
            super().on_response_complete()

        def timeout_keep_alive_handler(self) -> None:
            if self.transport.get_write_buffer_size():
                self.transport.abort()  # it doesn't read its response
            super().timeout_keep_alive_handler()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._expect_reading(self.transport.get_write_buffer_size())

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._reading is not None:
                self._reading.cancel()
                self._reading = None

        def shutdown(self) -> None:
            if self.cycle is not None and not self.cycle.response_complete and self.cycle.more_body:
                self.transport.close()  # what hasn't arrived isn't waited for
            super().shutdown()

        def _expect_headers(self) -> None:
            self._headers = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

        def _expect_reading(self, left: int) -> None:
            def check() -> None:
                now = self.transport.get_write_buffer_size()
                if now > left - READ_BYTES:
                    self.transport.abort()
                else:
                    self._expect_reading(now)

            if self._reading is not None:
                self._reading.cancel()
            self._reading = self.loop.call_later(READ_SECONDS, check)

        def _cancel(self) -> None:
            for timer in (self._headers, self._reading):
                if timer is not None:
                    timer.cancel()
            self._headers = self._reading = None

    return Protocol


def is_local(host: str) -> bool:
    """Return whether a name or IP address is of this machine alone, whoever resolves it."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_host(host: str) -> bool:
    """Return whether a host to listen on is of this machine alone.

    Raises:
        ConfigError: neither an IP address nor localhost.
    """
    if host != "localhost":
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise ConfigError(f"--host {host!r}: an IP address, for example 127.0.0.1 or 0.0.0.0") from None
    return is_local(host)


def freeze_gc() -> None:
    """Have collections of garbage pass over everything that exists by now: modules, routes, the model.

    A collection of it all would stop every thread for tens of milliseconds, now and again.
    """
    gc.collect()
    gc.freeze()


class BoundedHandler(logging.Handler):
    """Writes at most `LOG_BYTES` a minute to stderr; counts what it drops.

    Args:
        write: called with each line; writes to stderr by default.
        clock: seconds.
    """

    def __init__(
        self, write: Callable[[str], object] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self._write, self._clock = write, clock
        self._until, self._room, self._omitted = -1.0, 0, 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or count it."""
        if record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError):
            return  # the server was stopped
        if self._clock() >= self._until:
            if self._omitted:
                self._put(f"{self._omitted} more records were dropped")
            self._until, self._room, self._omitted = self._clock() + 60, LOG_BYTES, 0
        line = self.format(record) if self._room > 0 else ""
        if not 0 < len(line) <= self._room:
            self._room, self._omitted = 0, self._omitted + 1
            return
        self._room -= len(line)
        self._put(line)

    def _put(self, line: str) -> None:
        if self._write is not None:
            self._write(line)
        else:
            with suppress(OSError, ValueError):
                print(line, file=sys.stderr, flush=True)  # noqa: T201


TEXT = "text/plain; version=0.0.4"  # what Prometheus reads
SECONDS = Histogram.DEFAULT_BUCKETS  # the last is infinite


class Metrics:
    """Requests, how long they took, batches and the queue; none names a client.

    What every request counts is counted here, on the event loop; prometheus_client would take locks for each.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._statuses: Counts[int] = Counts()
        self._times = [0] * len(SECONDS)
        self._total = 0.0
        self.registry.register(self)
        options: dict[str, Any] = {"registry": self.registry}
        self.batches = Histogram("vl2v_batch_things", "things in a batch", buckets=(1, 2, 4, 8, 16, 32, 64), **options)
        self.queued = Gauge("vl2v_queued_things", "things that wait", **options)

    def answered(self, status: int, seconds: float) -> None:
        """Count a response."""
        self._statuses[status] += 1
        self._times[bisect_left(SECONDS, seconds)] += 1
        self._total += seconds

    def collect(self) -> Iterator[Any]:
        """Yield what is counted here, as prometheus_client wants it."""
        requests = CounterMetricFamily("vl2v_requests", "responses by status", labels=["status"])
        for status, count in self._statuses.items():
            requests.add_metric([str(status)], count)
        yield requests
        buckets = list(zip(map(floatToGoString, SECONDS), accumulate(self._times), strict=True))
        yield HistogramMetricFamily("vl2v_request_seconds", "time to respond", buckets, self._total)

    def text(self) -> bytes:
        """Return all of them as Prometheus reads them."""
        return generate_latest(self.registry)
