"""Who may ask: whoever has the key, where there is one."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

from starlette.responses import JSONResponse, Response

OPEN = frozenset(("/", "/health", "/ready", "/v2/health/live", "/v2/health/ready"))


def failure(status: int, message: str, code: str = "", headers: dict[str, str] | None = None) -> Response:
    """Return an answer that says what is wrong, in the form of the KServe protocol."""
    return JSONResponse({"error": message}, status, headers)


class Locked:
    """ASGI middleware: every address wants the key, but for the page and for those that tell if the server is well.

    Args:
        app: what it is around.
        key: is compared in constant time.
    """

    def __init__(self, app: Any, key: str) -> None:
        self.app = app
        self._digest = hashlib.sha256(key.encode()).digest()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http" or scope["path"] in OPEN or self._fits(scope):
            await self.app(scope, receive, send)
        else:
            refused = failure(401, "a valid key is needed", headers={"WWW-Authenticate": "Bearer"})
            await refused(scope, receive, send)

    def _fits(self, scope: Any) -> bool:
        scheme, _, given = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(self._digest, hashlib.sha256(given).digest())
