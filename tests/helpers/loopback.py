"""A server on a free port of loopback, in a thread of the test."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx2
import uvicorn

from vl2v.web.server import configured


def until(condition: Callable[[], object], futures: Sequence[Future[Any]] = (), seconds: float = 120) -> None:
    """Wait until something is so; what went wrong meanwhile in a future is raised at once."""
    end = time.monotonic() + seconds
    while not condition():
        for future in futures:
            if future.done():
                future.result()
        assert time.monotonic() < end, f"it isn't so after {seconds} s"
        time.sleep(0.01)


def until_accepted(url: str, things: int, futures: Sequence[Future[Any]] = ()) -> None:
    """Wait until a server has taken in so many things in all; they may wait, be worked on or be done already."""

    def accepted() -> float:
        metrics = httpx2.get(f"{url}/metrics", timeout=60).text
        counts = re.findall(r"^vl2v_(?:batch_things_sum|queued_things) (\S+)$", metrics, re.MULTILINE)
        return sum(float(count) for count in counts)

    until(lambda: accepted() >= things, futures)


def started_server(
    *words: str | Path,
    program: str = "from vl2v.cli import main; main()",
    python: str = sys.executable,
    **environment: str,
) -> tuple[subprocess.Popen[str], str]:
    """Start `vl2v WORDS` on a free port; return the process, and the address that it says it has."""
    command = [python, "-c", program, *map(str, words), "--port", "0"]
    process = subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True)
    late = threading.Timer(300, process.kill)
    late.start()
    printed = ""
    for line in process.stderr or ():
        printed += line
        if at := re.search(r" at (http://[^\s/]+)", line):
            late.cancel()
            return process, at[1]
    late.cancel()
    raise AssertionError(printed)


class Loopback:
    """A running ASGI app and its address."""

    def __init__(self, app: Any) -> None:
        self.server = uvicorn.Server(configured(app, port=0))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        started, startup = threading.Event(), self.server.startup

        async def announced(sockets: Any = None) -> None:
            await startup(sockets)
            started.set()

        self.server.startup = announced  # type: ignore[method-assign]
        self.thread.start()
        assert started.wait(300)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)
