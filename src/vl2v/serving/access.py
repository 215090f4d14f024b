"""Access: clients with the key, or this machine where there is none; no page elsewhere; bodies of bounded size."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from vl2v.web.server import is_local

TRIES = 20  # wrong keys that an address may send in a minute
_ADDRESSES = 10_000  # that are remembered
BODY_SECONDS = 60.0  # that a body may take
OPEN = frozenset(("/", "/health", "/ready", "/v2/health/live", "/v2/health/ready"))


def failure(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """Return a response that says what is wrong, in the form of the KServe protocol."""
    return JSONResponse({"error": message}, status, headers)


class _Guard(ABC):
    """ASGI middleware that passes requests on or refuses them, before their bodies are read."""

    refused: Response

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or refuse it."""
        passed = scope["type"] != "http" or self.passes(scope)
        await (self.app if passed else self.refused)(scope, receive, send)

    @abstractmethod
    def passes(self, scope: Any) -> bool:
        """Return whether a request is passed on."""


class Locked(_Guard):
    """Every route wants the key, but for the page and the health checks.

    A client that sends too many wrong keys in a minute has no more of them compared until it is over; an address from
    which the right key has come before isn't slowed by what others behind the same proxy try.

    Args:
        key: is compared in constant time.
    """

    refused = failure(401, "a valid key is needed", headers={"WWW-Authenticate": "Bearer"})
    slowed = failure(429, "too many wrong keys, try again later", headers={"Retry-After": "60"})

    def __init__(self, app: Any, key: str) -> None:
        super().__init__(app)
        self._digest = hashlib.sha256(key.encode()).digest()
        self._wrong: OrderedDict[str, tuple[float, int]] = OrderedDict()  # since when, how many
        self._right: OrderedDict[str, None] = OrderedDict()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or refuse it."""
        address = (scope.get("client") or ("",))[0]
        given = dict(scope["headers"]).get(b"authorization") if scope["type"] == "http" else None
        if given and address not in self._right and self._tries(address) >= TRIES and scope["path"] not in OPEN:
            await self.slowed(scope, receive, send)
            return
        await super().__call__(scope, receive, send)

    def passes(self, scope: Any) -> bool:
        """Return whether the address is open, or the key right."""
        given = dict(scope["headers"]).get(b"authorization")
        address = (scope.get("client") or ("",))[0]
        if given:
            scheme, _, key = given.partition(b" ")
            if scheme.lower() == b"bearer" and hmac.compare_digest(self._digest, hashlib.sha256(key).digest()):
                _remember(self._right, address, None)
                return True
            since = self._wrong[address][0] if self._tries(address) else time.monotonic()
            _remember(self._wrong, address, (since, self._tries(address) + 1))
        return scope["path"] in OPEN

    def _tries(self, address: str) -> int:
        since, count = self._wrong.get(address, (0.0, 0))
        return count if count and time.monotonic() - since < 60 else 0


class Local(_Guard):
    """Only what was addressed to this machine is taken: a page elsewhere could have its own name point here."""

    refused = failure(400, "addressed to another machine; there is no key, so only this one may send requests")

    def passes(self, scope: Any) -> bool:
        """Return whether a request was addressed to this machine."""
        try:
            return is_local(urlsplit(f"//{_header(scope, b'host')}").hostname or "")
        except ValueError:
            return False


class FromHere(_Guard):
    """A page elsewhere may only read: a browser sends its forms without a preflight request.

    Args:
        origins: of pages elsewhere that may do more.
    """

    refused = failure(403, "pages elsewhere may not send requests; --origin allows one")

    def __init__(self, app: Any, origins: Sequence[str]) -> None:
        super().__init__(app)
        self._origins = frozenset(origins)

    def passes(self, scope: Any) -> bool:
        """Return whether a request only reads, or comes from no page, the server's own or an allowed one."""
        origin = _header(scope, b"origin")
        if scope["method"] in ("GET", "HEAD", "OPTIONS") or not origin or {origin, "*"} & self._origins:
            return True
        if _header(scope, b"sec-fetch-site") == "same-origin":  # the browser knows, where a proxy has changed the host
            return True
        return origin.partition("://")[2] == _header(scope, b"host")


def _header(scope: Any, name: bytes) -> str:
    value: bytes = dict(scope["headers"]).get(name, b"")
    return value.decode("latin-1")


def _remember(what: OrderedDict[str, Any], address: str, value: Any) -> None:
    what[address] = value
    what.move_to_end(address)
    if len(what) > _ADDRESSES:
        what.popitem(last=False)


class Refused(HTTPException):
    """A body that isn't taken."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(status, message, {"Connection": "close", **headers})


class Bodies:
    """ASGI middleware: requests counted, and their bodies while they stream in; what is too large or slow is refused.

    Args:
        most: bytes of a body.
        observe: called with the status and the seconds of every response.
        together: bytes of all bodies that are held at once.
    """

    def __init__(
        self,
        app: Any,
        *,
        most: int,
        observe: Callable[[int, float], None],
        together: int,
    ) -> None:
        self.app = app
        self.most = most
        self.observe = observe
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
                async with asyncio.timeout(started + BODY_SECONDS - time.perf_counter()):
                    message = await receive()
            except TimeoutError:
                raise Refused(408, f"the body took over {BODY_SECONDS:g} s") from None
            whole = not message.get("more_body", False)
            size = len(message.get("body", b""))
            seen, self.held = seen + size, self.held + size
            if seen > self.most:
                raise self._too_large()
            if self.held > self.together:
                raise Refused(429, "too much is being sent, try again", **{"Retry-After": "1"})
            return message

        async def timed(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.observe(message["status"], time.perf_counter() - started)
            await send(message)

        length = dict(scope["headers"]).get(b"content-length", b"0")
        try:
            if not length.isdigit() or int(length) > self.most:
                refused = self._too_large()
                await failure(refused.status_code, refused.detail)(scope, receive, timed)
            else:
                await self.app(scope, counted, timed)
        finally:
            self.held -= seen

    def _too_large(self) -> Refused:
        return Refused(413, f"at most {self.most} bytes a request")
