"""A server on a free port of loopback, in a thread of the test."""

from __future__ import annotations

import re
import threading
import time
from typing import Any

import httpx2
import uvicorn


def until_accepted(url: str, things: int) -> None:
    """Wait until a server has taken in so many things in all; they may wait, be worked on or be answered already."""
    accepted = 0.0
    while accepted < things:
        time.sleep(0.01)
        told = httpx2.get(f"{url}/metrics").text
        accepted = sum(
            float(value) for value in re.findall(r"^vl2v_(?:batch_things_sum|queued_things) (\S+)$", told, re.MULTILINE)
        )


class Loopback:
    """A running ASGI app and its address."""

    def __init__(self, app: Any) -> None:
        self.server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        started, startup = threading.Event(), self.server.startup

        async def told(sockets: Any = None) -> None:
            await startup(sockets)
            started.set()

        self.server.startup = told  # type: ignore[method-assign]
        self.thread.start()
        assert started.wait(300)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)
