"""How an attempt may come to nothing: what a vendor's response other than 200 says, and whether to try again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from time import time

from vl2v.teachers.paid.line import Reply

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
