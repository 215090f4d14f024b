"""Clients that trickle, don't read or are too many, and a log that nobody can fill."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest

from loopback import Loopback, until
from vl2v.web import server

LARGE = 64 * 2**20


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    message = await receive()
    while message.get("more_body"):
        message = await receive()
    if message["type"] == "http.disconnect":
        return
    body = bytes(LARGE) if scope["path"] == "/large" else b"here"
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@contextmanager
def running() -> Iterator[Loopback]:
    loopback = Loopback(app)
    try:
        yield loopback
    finally:
        loopback.stop()
        assert not loopback.thread.is_alive()


def connected(loopback: Loopback, sent: bytes) -> socket.socket:
    opened = socket.create_connection(("127.0.0.1", int(loopback.url.rpartition(":")[2])), timeout=30)
    opened.sendall(sent)
    return opened


def closed(opened: socket.socket) -> bool:
    """Read until the end; a timeout raises."""
    try:
        while opened.recv(2**20):
            pass
    except ConnectionError:
        pass
    return True


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-a: ",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nX-a",
    ],
)
def test_headers_that_do_not_come_are_not_waited_for(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.2)
    with running() as loopback, connected(loopback, sent) as trickling:
        assert closed(trickling)
        monkeypatch.undo()
        assert httpx2.get(loopback.url, timeout=300).text == "here"


def test_more_connections_than_allowed_cost_the_silent_ones_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_connections", lambda: 4)
    monkeypatch.setattr(server, "HEADER_SECONDS", 300)
    with running() as loopback:
        silent = [connected(loopback, b"GET / HTTP/1.1\r\nX-a: ") for _ in range(9)]
        assert httpx2.get(loopback.url, timeout=300).text == "here"
        assert all(closed(opened) for opened in silent[:6]), "the first to come"
        for opened in silent:
            opened.close()


def test_a_client_that_does_not_read_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "READ_SECONDS", 0.2)
    with running() as loopback:
        deaf = connected(loopback, b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        connections = loopback.server.server_state.connections
        until(lambda: loopback.server.server_state.total_requests)
        until(lambda: not connections)
        deaf.close()
        monkeypatch.undo()
        reading = httpx2.get(f"{loopback.url}/large", timeout=300)
        assert len(reading.content) == LARGE


def test_stopping_does_not_wait_for_half_a_body(caplog: pytest.LogCaptureFixture) -> None:
    with running() as loopback:
        half = connected(loopback, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        until(lambda: loopback.server.server_state.tasks)
    assert closed(half) and not caplog.records


def test_the_log_is_bounded_and_says_so() -> None:
    lines: list[str] = []
    now = [0.0]
    handler = server.BoundedHandler(lines.append, lambda: now[0])
    logger = logging.getLogger("vl2v.test.bounded")
    logger.addHandler(handler)
    logger.propagate = False
    for _ in range(5000):
        logger.warning("x" * 100)
    assert sum(len(line) for line in lines) <= server.LOG_BYTES
    written = len(lines)
    now[0] = 61.0
    logger.warning("later")
    assert lines[written] == f"{5000 - written} more records were dropped" and lines[-1].endswith("later")
    logger.error("stopped", exc_info=asyncio.CancelledError())
    assert len(lines) == written + 2
