"""Servers on free ports of this machine, and requests to them; an HTTP client would need more time than the servers."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any


def serve_app(app: Any, listening: Callable[[int], None], **options: Any) -> None:
    """Serve until the process is killed, as our servers do but for options; tell the port once it is open."""
    import uvicorn

    from vl2v.web.server import configured, freeze_gc

    server = uvicorn.Server(configured(app, port=0, **options))
    startup = server.startup

    async def started(sockets: Any = None) -> None:
        await startup(sockets)
        listening(server.servers[0].sockets[0].getsockname()[1])

    server.startup = started  # type: ignore[method-assign]
    freeze_gc()
    server.run()


async def load(
    port: int, requests: Sequence[bytes], connections: int, seconds: float, rate: float | None = None
) -> tuple[Counter[int], list[float]]:
    """Send requests, one after another of those given; return responses by status, and the seconds of those with 200.

    Without a rate every connection sends again when it has its response; with one, requests are due at fixed times, and
    time counts from when they were due. A connection that is closed, or that ends before there is a response (status
    0), is followed by a new one.
    """
    statuses: Counter[int] = Counter()
    times: list[float] = []
    begin, number = time.perf_counter(), 0

    async def one() -> None:
        nonlocal number
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while True:
            mine, number = number, number + 1
            due = time.perf_counter() if rate is None else begin + mine / rate
            if due > begin + seconds:
                break
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            try:
                writer.write(requests[mine % len(requests)])
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
                await reader.readexactly(int(length.partition(b":")[2]))
                status = int(head[9:12])
                closed = b"\r\nconnection: close" in head.lower()
            except (ConnectionError, asyncio.IncompleteReadError):  # turned away before its body was read
                status, closed = 0, True
            if closed:
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            statuses[status] += 1
            if status == 200:
                times.append(time.perf_counter() - due)
        writer.close()

    await asyncio.gather(*(one() for _ in range(connections)))
    return statuses, times
