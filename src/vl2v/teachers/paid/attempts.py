"""Requests to a vendor, each tried until there is a usable response, and every attempt reserved from the budget.

A retry costs money as a first attempt does, so every attempt is reserved before it leaves. The response says what it
cost; where there is none the vendor may have billed it, and it stays on the bill here.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import uuid
from functools import partial
from typing import Any
from urllib.parse import quote

import numpy as np

from vl2v.errors import TeacherError
from vl2v.privacy import read_secret, without_secrets
from vl2v.teachers.paid.adapters import Adapter, vector
from vl2v.teachers.paid.limits import Limits, Price, RateLimit
from vl2v.teachers.paid.line import (
    STALE,
    WORDS,
    Line,
    Rejected,
    Reply,
    TryAgain,
    Unusable,
    hopeless_connection,
    retry_after,
    words_of,
)
from vl2v.teachers.paid.requests import Item, Names, Sent, Usage
from vl2v.teachers.paid.session import Outcome, Session
from vl2v.teachers.paid.teacher import Budget, Embedded, Kind, Query, Refused, Status, money
from vl2v.teachers.protocol import Vectors

ATTEMPTS = 8
PATIENCE = 900.0  # seconds that one request may take with all its retries
TIMEOUT = 120.0  # seconds for a whole response
ABOUT = 2**20  # bytes of a response beside its vectors, at most
NUMBER = 32  # bytes of a number in it, at most
DIM = 16_384  # numbers in a vector of unknown dimension, at most

_OUT_OF_MONEY = ("insufficient_balance", "insufficient_quota", "insufficient balance", "exceeded your current quota")
_OF_MONEY = ("billing", "payment")  # where the status doesn't mean "too fast": then they are the way to higher limits

_log = logging.getLogger(__name__)


class Attempts:
    """Requests about one model, over all sessions with a vendor, and what their responses taught.

    Args:
        name: the teacher's, for messages.
        dimensions: wanted, where the vendor offers a choice.

    Attributes:
        budget: that attempts are reserved from; None: nothing may be queried.
        responded: kinds of which a usable response came.
        dim: d, where it is known.
        key: of the API; "" without one, and until the line is open.
    """

    def __init__(
        self, name: str, adapter: Adapter, limits: Limits, url: str, model: str, dimensions: int | None
    ) -> None:
        self.name = name
        self.url = url.rstrip("/")
        self.limits = limits
        self.budget: Budget | None = None
        self.responded: set[Kind] = set()
        self.dim = dimensions or limits.dim
        self.key = ""
        self._adapter = adapter
        self._model = model
        self._dimensions = dimensions
        self._names = Names(name, limits)
        self._usage = Usage()
        self._doubted: set[str] = set()  # oddities of its usage that were logged
        self._rate_limit = RateLimit(limits.requests_a_minute, limits.items_a_minute, limits.tokens_a_minute)
        self._line: Line | None = None

    def connected(self) -> Line:
        """Return the line to the vendor, with the key that the environment has."""
        if self._line is None or not self._line.works:
            self.key = read_secret(self._adapter.key)
            auth = _Bearer(self.key, self._adapter.header) if self.key else None
            self._line = Line(self, auth, self.limits.in_flight)
        return self._line

    async def handle(self, session: Session, kind: Kind, batch: list[Item]) -> Outcome:
        """Return a request's outcome, and the error that ends the session; a bad item in it is found by halving."""
        with session.task():
            try:
                return await self._halves(session, kind, batch)
            except asyncio.CancelledError:
                return [], None

    async def _halves(self, session: Session, kind: Kind, batch: list[Item]) -> Outcome:
        try:
            return await self._request(session, kind, batch)
        except Rejected as error:
            reason = str(error)
        except TryAgain as error:
            return [], TeacherError(
                f"{self.name}: gave up after {ATTEMPTS} attempts, the last one: {error}; every embedding that arrived "
                "is saved, the same command resumes"
            )
        except Exception as error:  # the ledger's, too: others have arrived meanwhile
            return [], error
        if len(batch) == 1:
            return [Refused(batch[0].position, reason)], None
        middle = len(batch) // 2
        found, trouble = await self._halves(session, kind, batch[:middle])
        if trouble is None:
            try:
                more, trouble = await self._halves(session, kind, batch[middle:])
                found += more
            except asyncio.CancelledError:
                pass  # the first half is there
        return found, trouble

    async def _request(self, session: Session, kind: Kind, batch: list[Item], *, canary: bool = False) -> Outcome:
        """Try until there is a usable response.

        Raises:
            Rejected, TryAgain: see there.
            TeacherError: no further attempt can succeed.
        """
        import stamina

        assert self.budget is not None
        things: Any = [item.thing for item in batch]
        body = self._adapter.body(self._model, kind, things, self._dimensions)
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        digest = hashlib.sha256(body).hexdigest()
        before = self.budget.key_of(digest)
        sent = Sent(kind, batch, body, digest, before or str(uuid.uuid4()), before is not None, canary=canary)
        backoff = {"wait_initial": 0.2, "wait_max": 30.0, "wait_jitter": 1.0}
        async for attempt in stamina.retry_context(on=_again, attempts=ATTEMPTS, timeout=PATIENCE, **backoff):
            with attempt:
                try:
                    return await self._attempt(session, sent)
                except TryAgain as error:
                    sent.failed(error)
                    raise
        raise AssertionError

    async def _attempt(self, session: Session, sent: Sent) -> Outcome:
        assert self.budget is not None
        if session.over:
            raise asyncio.CancelledError
        budget, count, price = self.budget, len(sent.batch), self._price
        tokens, micro = self._usage.at_most(sent.kind, [item.tokens for item in sent.batch], price)
        query = Query(sent.kind, count, tokens, micro, sent.digest, sent.key)
        number = await _reserved(budget, query)  # before the rate limit: what can't be paid needn't wait
        try:
            await self._rate_limit.wait(1, count, tokens)
        except asyncio.CancelledError:
            budget.settle(number, "rejected", note="stopped before it left")
            raise
        try:
            with session.in_flight(micro):
                reply, trouble, status = await self._send(sent)
        except asyncio.CancelledError:
            budget.settle(number, "lost", note="stopped while it was in flight")
            raise
        except TeacherError:
            budget.settle(number, "rejected", note="no connection")
            raise
        if reply is None:
            budget.settle(number, status, note=trouble)
            raise TryAgain(trouble, counted=status != "rejected", stale=STALE // 2 * (status == "wrong"))
        if reply.status != 200:
            failure, status = self._failure(reply)
            budget.settle(number, status, note=f"{reply.status}")
            raise failure
        return await self._read(session, sent, query, reply, number)

    async def _read(self, session: Session, sent: Sent, query: Query, reply: Reply, number: int) -> Outcome:
        """Return a response's embeddings, checked.

        Raises:
            TryAgain: it can't be used; it is paid for all the same.
        """
        assert self.budget is not None
        budget, kind, count = self.budget, sent.kind, len(sent.batch)
        try:
            found = json.loads(reply.content)
            tokens, price = self._adapter.tokens(found), self._adapter.micro(found)
        except (ValueError, AttributeError, TypeError, KeyError, RecursionError):
            budget.settle(number, "lost", note="the response isn't JSON")
            raise TryAgain("the response isn't JSON", counted=True, stale=STALE // 2) from None
        said = self._clean(str(found.get("model") or found.get("modelVersion") or ""))
        sized = self.limits.tokens(kind, (8, 8)) > 0
        cost = self._usage.count(query, tokens, price, self._price, first=kind not in self.responded, sized=sized)
        used, micro, note = cost.tokens, cost.micro, cost.doubt or (self.limits.unverified if price is None else "")
        if sent.counted and reply.headers.get("idempotent-replayed", "").lower() == "true":
            used, micro, note = 0, 0, "billed with an earlier attempt"
        self._doubt(cost.doubt)
        try:
            vectors = self._vectors(self._adapter.rows(found), count)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            wrong = f"unusable response ({self._clean(str(error))})"
            budget.settle(number, "wrong", tokens=used, micro=micro, model=said, note=wrong)
            raise TryAgain(wrong, counted=True, stale=STALE // 2) from None
        self._names.observe(kind, sent.batch, said, vectors)
        if not sent.canary:
            try:
                await self._names.prove(said, partial(self._canary, session))
            except TeacherError:
                budget.settle(number, "wrong", tokens=used, micro=micro, model=said, note="another name of the model")
                raise
        self.responded.add(kind)

        def settle() -> None:
            budget.settle(number, "answered", tokens=used, micro=micro, model=said, note=note)

        embedded: list[Embedded | Refused] = [Embedded(tuple(item.position for item in sent.batch), vectors, settle)]
        return embedded, None if cost.said is None else TeacherError(
            f"{self.name}: says that a query cost {money(cost.said, self.limits.currency)}, where "
            f"{money(query.micro, self.limits.currency)} was possible: its counting can't be trusted, and what was "
            "possible is counted; all embeddings are saved: check its prices and its bill before you resume"
        )

    def _doubt(self, doubt: str) -> None:
        sort = doubt.partition(" ")[0]
        if sort and sort not in self._doubted:
            self._doubted.add(sort)
            _log.warning("%s: %s; the note of each query in `vl2v bill --csv` says where", self.name, doubt)

    async def _canary(self, session: Session, kind: Kind, item: Item) -> None:
        """Query a canary; its embedding goes to `self._names`."""
        found, trouble = await self._request(session, kind, [item], canary=True)
        for reply in found:
            if isinstance(reply, Embedded):
                reply.settle()
        if trouble is not None:
            raise trouble

    def _vectors(self, rows: list[Any], count: int) -> Vectors:
        """Return unit rows [n, d].

        Raises:
            ValueError: wrong count or dimension, NaN, zero.
        """
        if len(rows) != count:
            raise ValueError(f"{len(rows)} vectors for {count} queries")
        vectors = np.stack([vector(row) for row in rows])
        if vectors.ndim != 2 or (self.dim is not None and vectors.shape[1] != self.dim):
            raise ValueError(f"vectors of shape {vectors.shape[1:]}, not ({self.dim},)")
        norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
        if not np.isfinite(norms).all() or not (norms > 0).all():
            raise ValueError("NaN or zero vectors")
        self.dim = vectors.shape[1]
        unit: Vectors = (vectors / norms).astype(np.float32)
        return unit

    async def _send(self, sent: Sent) -> tuple[Reply | None, str, Status]:
        """Return the response; or why there is none, and whether the vendor may have counted the request.

        Raises:
            TeacherError: no attempt can succeed; the vendor has counted nothing.
        """
        import httpx2

        json_ = sent.body.startswith(b"{")  # as no image does
        content = "application/json" if json_ else "application/octet-stream"
        headers = {"Content-Type": content, "Idempotency-Key": sent.key}
        most = ABOUT + len(sent.batch) * (self.dim or DIM) * NUMBER
        try:
            url = self.url + self._adapter.path.format(model=quote(self._model, safe=""), kind=sent.kind.title())
            reply = await self.connected().send("POST", url, headers, sent.body, seconds=TIMEOUT, most=most)
        except (
            httpx2.ConnectError,
            httpx2.ConnectTimeout,
            httpx2.PoolTimeout,
            httpx2.InvalidURL,
            httpx2.UnsupportedProtocol,
            httpx2.LocalProtocolError,
            httpx2.ProxyError,
        ) as error:
            why = self._clean(without_secrets(str(error)))
            if hopeless := hopeless_connection(why):
                raise TeacherError(f"{self.name}: {hopeless}") from None
            return None, f"no connection ({type(error).__name__}: {why})", "rejected"
        except httpx2.RequestError as error:
            return None, f"the connection broke ({type(error).__name__})", "lost"
        except TimeoutError:
            return None, f"no complete response within {TIMEOUT:g} seconds", "lost"
        except Unusable as error:
            return None, str(error), "wrong"
        return reply, "", "answered"

    def _failure(self, response: Reply) -> tuple[Exception, Status]:
        """Return what a status other than 200 means, and whether it may have been billed."""
        status, words = response.status, self._clean(words_of(response))
        after = retry_after(response)
        signs = _OUT_OF_MONEY if status == 429 else (*_OUT_OF_MONEY, *_OF_MONEY)
        if status == 402 or (status in (403, 429) and any(sign in words.lower() for sign in signs)):
            return TeacherError(f"{self.name}: the vendor says that the money or quota is used up: {words}"), "rejected"
        busy = status in (429, 503)
        if busy or status >= 500 or status in (408, 425, 499):
            outcome: Status = "rejected" if busy else "lost"
            if after is not None and after > PATIENCE:
                wait = f"the vendor wants no request for {after / 60:.0f} minutes"
                saved = "every embedding that arrived is saved"
                return TeacherError(f"{self.name}: {status}, {wait}; {saved}: {words}"), outcome
            if busy:
                self._rate_limit.hold(after or 0.0)
                words = f"too fast or too busy: {words}"
            return TryAgain(f"{status}, {words}", after, counted=outcome != "rejected"), outcome
        if status == 409:  # a request with this key, of a client that is gone, is still being worked on
            return TryAgain(f"{status}, {words}", after, stale=1), "rejected"
        if status in (400, 413, 422):
            return Rejected(f"{status} {words} {self._adapter.hint}".strip()), "rejected"
        if status in (401, 403):
            return TeacherError(
                f"{self.name}: {status}, the key in {self._adapter.key} isn't accepted: {words}"
            ), "rejected"
        if 300 <= status < 400:
            to = without_secrets(response.headers.get("location", ""))
            return TeacherError(
                f"{self.name}: {status}, the server sends on to {to or 'nowhere'}, where nothing was sent: if that is "
                "right, put its address into the teacher's name"
            ), "rejected"
        if status == 407:
            return TeacherError(f"{self.name}: {hopeless_connection('407')}"), "rejected"
        if status == 404:
            return TeacherError(f"{self.name}: 404, no such model or address: {words}"), "rejected"
        return TeacherError(f"{self.name}: {status}: {words}"), "rejected"

    @property
    def _price(self) -> Price:
        assert self.limits.price is not None  # the client has seen to it
        return self.limits.price

    def _clean(self, words: str) -> str:
        """Return a vendor's words on one line, short, and without the key."""
        line = " ".join(words.split())
        if self.key:
            line = line.replace(self.key, "***")
        return line[:WORDS]


def _Bearer(key: str, header: str) -> Any:  # noqa: N802
    """Return what puts the key into a request at the moment when it leaves, and nowhere else."""
    import httpx2

    class Bearer(httpx2.Auth):
        def auth_flow(self, request: httpx2.Request) -> Any:
            name, _, before = header.partition(": ")
            request.headers[name] = f"{before}{key}"
            yield request

    return Bearer()


async def _reserved(budget: Budget, query: Query) -> int:
    """Reserve a query in another thread: the disk may take its time."""
    writing = asyncio.ensure_future(asyncio.to_thread(budget.reserve, query))
    try:
        return await asyncio.shield(writing)
    except asyncio.CancelledError:
        budget.settle(await writing, "rejected", note="stopped before it left")
        raise


def _again(error: Exception) -> bool | float:
    if not isinstance(error, TryAgain):
        return False
    return True if error.after is None else error.after
