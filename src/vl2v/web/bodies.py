"""Requests counted, and their bodies while they stream in: what is too large, or too slow, is refused on the way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

TOGETHER = 512 * 2**20  # bytes of bodies that are held at once
SECONDS = 60.0  # that a body may take


class Refused(HTTPException):
    """A body that isn't taken."""

    def __init__(self, status: int, message: str, code: str, **headers: str) -> None:
        super().__init__(status, message, {"Connection": "close", **headers})
        self.code = code


class Bodies:
    """ASGI middleware.

    Args:
        app: what it is around.
        most: bytes of a body.
        refusal: makes the response to a body that is refused before the app sees it, of status, message and code.
        observe: called with the status and the seconds of every response.
        seconds: that a body may take.
        together: bytes of all bodies that are held at once.
    """

    def __init__(
        self,
        app: Any,
        *,
        most: int,
        refusal: Callable[[int, str, str], Response],
        observe: Callable[[int, float], None],
        seconds: float = SECONDS,
        together: int = TOGETHER,
    ) -> None:
        self.app = app
        self.most = most
        self.refusal = refusal
        self.observe = observe
        self.seconds = seconds
        self.together = together
        self.held = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, seen, whole = time.perf_counter(), 0, False

        async def counted() -> Any:
            nonlocal seen, whole
            if whole:  # what comes now is the end of the connection
                return await receive()
            try:
                async with asyncio.timeout(started + self.seconds - time.perf_counter()):
                    message = await receive()
            except TimeoutError:
                raise Refused(408, f"the body took over {self.seconds:g} s", "too_slow") from None
            whole = not message.get("more_body", False)
            size = len(message.get("body", b""))
            seen, self.held = seen + size, self.held + size
            if seen > self.most:
                raise self._too_large()
            if self.held > self.together:
                raise Refused(429, "too much is being sent, try again", "overloaded", **{"Retry-After": "1"})
            return message

        async def timed(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.observe(message["status"], time.perf_counter() - started)
            await send(message)

        length = dict(scope["headers"]).get(b"content-length", b"0")
        try:
            if not length.isdigit() or int(length) > self.most:
                refused = self._too_large()
                await self.refusal(refused.status_code, refused.detail, refused.code)(scope, receive, timed)
            else:
                await self.app(scope, counted, timed)
        finally:
            self.held -= seen

    def _too_large(self) -> Refused:
        return Refused(413, f"at most {self.most} bytes a request", "too_large")
