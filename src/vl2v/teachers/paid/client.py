"""The one client of all vendors: batches, several requests in flight, retries, and a budget that each is reserved from.

A retry costs money as a first attempt does, so every attempt is reserved before it leaves. The response says what it
cost; where there is none the vendor may have billed it, and it stays on the bill here.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any
from urllib.parse import quote

import numpy as np

from vl2v.errors import TeacherError, VL2VError
from vl2v.privacy import HIDDEN, canonical_url, is_loopback, without_secrets
from vl2v.secret import read_secret
from vl2v.stopping import heeding
from vl2v.teachers.paid import images
from vl2v.teachers.paid.adapters import Adapter, vector
from vl2v.teachers.paid.failures import WORDS, hopeless_connection, retry_after, words_of
from vl2v.teachers.paid.limits import Limits, Price, canonical_spec, parts_of
from vl2v.teachers.paid.line import CONNECT, Line, Reply, Unusable
from vl2v.teachers.paid.names import Names
from vl2v.teachers.paid.rate_limit import RateLimit
from vl2v.teachers.paid.requests import STALE, Item, Rejected, Sent, TryAgain, batched
from vl2v.teachers.paid.session import Outcome, Session
from vl2v.teachers.paid.teacher import (
    MICRO,
    Budget,
    Embedded,
    Forecast,
    Kind,
    Query,
    Refused,
    Status,
    money,
)
from vl2v.teachers.paid.usage import Usage
from vl2v.teachers.protocol import ANSWER_VERSION, EncodedImage, Vectors

ATTEMPTS = 8
PATIENCE = 900.0  # seconds that one request may take with all its retries
TIMEOUT = 120.0  # seconds for a whole response
ABOUT = 2**20  # bytes of a response beside its vectors, at most
NUMBER = 32  # bytes of a number in it, at most
DIM = 16_384  # numbers in a vector of unknown dimension, at most

_OUT_OF_MONEY = ("insufficient_balance", "insufficient_quota", "insufficient balance", "exceeded your current quota")
_OF_MONEY = ("billing", "payment")  # where the status doesn't mean "too fast": then they are the way to higher limits


_log = logging.getLogger(__name__)


class RemoteTeacher:
    """A teacher behind a vendor's API.

    Nothing is queried without a budget; `fingerprint` needs no network, and `forecast` costs nothing.

    Args:
        name: its spec, as the user gave it.
        adapter: the vendor's request and response format.
        limits: prices and limits.
        url: base URL.
        model: its name.
        dimensions: wanted, where the vendor offers a choice.
    """

    logit_scale: float | None = None

    def __init__(
        self, name: str, adapter: Adapter, limits: Limits, url: str, model: str, dimensions: int | None
    ) -> None:
        self.name = name
        self.budget: Budget | None = None
        self.currency = limits.currency
        self.limits = limits
        self._adapter = adapter
        self._url = url.rstrip("/")
        self._kind = name.partition(":")[0]
        self._model = model
        self._dimensions = dimensions
        self._dim = dimensions or limits.dim
        self._names = Names(name, limits)
        self._usage = Usage()
        self._doubted: set[str] = set()  # oddities of its usage that were logged
        self._rate_limit = RateLimit(limits.requests_a_minute, limits.items_a_minute, limits.tokens_a_minute)
        self._ended = threading.Event()
        self._line: Line | None = None
        self._key = ""
        self._answered: set[Kind] = set()
        self._free = False  # whether a warning said that it is counted as free
        self._listed = False  # whether the vendor listed its prices
        self.fingerprint = _fingerprint(name, canonical_url(url), model, dimensions, limits)

    def __repr__(self) -> str:
        return f"RemoteTeacher({self.name!r})"

    def was_spelt(self, name: str, fingerprint: str) -> bool:
        """Return whether an earlier version had this name and fingerprint for this teacher, its address spelt so."""
        if canonical_spec(name) != self.name:
            return False
        _, url, *_ = parts_of(name)
        spelt = _fingerprint(name, (url or self.limits.url).rstrip("/"), self._model, self._dimensions, self.limits)
        return fingerprint == spelt or HIDDEN in name  # the address had a password, and so had its fingerprint

    def image_as_text(self, data: bytes) -> str | None:
        """Return what a server that overlooks the modality would embed of an image as a text; None: none may."""
        if not self._adapter.modality:
            return None
        return images.prepare(data, self.limits.formats, self.limits.image_bytes, self.limits.image_pixels).uri

    def too_long(self, text: str) -> str | None:
        """Return why the vendor wouldn't take a whole text, by its documented limits; None: it would."""
        return self.limits.too_long(text)

    @property
    def doubt(self) -> str:
        """See `vl2v.teachers.paid.teacher.PaidTeacher`."""
        return self.limits.unverified

    @property
    def dim(self) -> int:
        """d; where it isn't known yet, one text is queried."""
        if self._dim is None:
            self.embed_texts(["a photo"])
        assert self._dim is not None
        return self._dim

    def forecast(self, kind: Kind, sizes: Iterable[tuple[int, int]]) -> Forecast:
        """See `vl2v.teachers.paid.teacher.PaidTeacher`."""
        self._learn_prices()
        price = self._price()
        tokens = [self.limits.tokens(kind, size) for size in sizes]
        requests = -(-len(tokens) // self.limits.items(kind))
        limits = (
            (requests, self.limits.requests_a_minute),
            (len(tokens), self.limits.items_a_minute),
            (sum(tokens), self.limits.tokens_a_minute),
        )
        seconds = max((60.0 * count / limit for count, limit in limits if limit), default=0.0)
        return Forecast(requests, sum(tokens), price.micro(kind, len(tokens), sum(tokens)), seconds)

    def embed_images(self, images: Sequence[EncodedImage]) -> Vectors:
        """Return I(x) [n, d], unit rows, in order.

        Raises:
            BudgetReached, TeacherError: see `query`; also for an image that the vendor won't take.
        """
        return self._embed("image", images)

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """Return the texts' embeddings [n, d], unit rows, in order. Raises as `embed_images` does."""
        return self._embed("text", texts)

    def stop(self) -> None:
        """See `vl2v.teachers.paid.teacher.PaidTeacher`."""
        self._ended.set()

    def query(self, kind: Kind, items: Iterable[EncodedImage] | Iterable[str]) -> Iterator[Embedded | Refused]:
        """See `vl2v.teachers.paid.teacher.PaidTeacher`."""
        line, budget, words = self._open(), self.budget, ""
        assert budget is not None
        with heeding() as stop:
            session = Session(line, lambda: stop.wanted or self._ended.is_set())
            send, most = partial(self._handle, session, kind), self.limits.in_flight
            first = most if kind in self._answered else 1  # the first one shows what others may cost
            try:
                yield from session.run(batched(self.limits, kind, items), send, first, most)
            except VL2VError:
                if not session.stopped:
                    raise
            finally:
                if session.stopped:
                    words = session.words(self.currency, budget.bill())
                    _log.warning("%s: %s", self.name, words)
        if stop.signal is not None:
            stop.end()
        if words:
            raise TeacherError(f"{self.name}: {words}")

    def _embed(self, kind: Kind, items: Sequence[EncodedImage] | Sequence[str]) -> Vectors:
        rows: dict[int, Any] = {}
        for reply in self.query(kind, items):
            if isinstance(reply, Refused):
                thing = items[reply.position]
                what = thing if isinstance(thing, str) else thing.name
                raise TeacherError(f"{self.name}: won't take {what!r}: {reply.reason}")
            reply.settle()
            rows.update(zip(reply.positions, reply.vectors, strict=True))
        return np.stack([rows[i] for i in range(len(items))]) if rows else np.zeros((0, self.dim), np.float32)

    async def _handle(self, session: Session, kind: Kind, batch: list[Item]) -> Outcome:
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

    async def _request(self, session: Session, kind: Kind, batch: list[Item], *, known: bool = False) -> Outcome:
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
        sent = Sent(kind, batch, body, digest, before or str(uuid.uuid4()), before is not None, known=known)
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
        budget, count, price = self.budget, len(sent.batch), self._price()
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
        cost = self._usage.count(query, tokens, price, self._price(), first=kind not in self._answered, sized=sized)
        used, micro, note = cost.tokens, cost.micro, cost.doubt or (self.doubt if price is None else "")
        if sent.counted and reply.headers.get("idempotent-replayed", "").lower() == "true":
            used, micro, note = 0, 0, "billed with an earlier attempt"
        self._doubt(cost.doubt)
        try:
            vectors = self._vectors(self._adapter.rows(found), count)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            wrong = f"unusable response ({self._clean(str(error))})"
            budget.settle(number, "wrong", tokens=used, micro=micro, model=said, note=wrong)
            raise TryAgain(wrong, counted=True, stale=STALE // 2) from None
        self._names.hear(kind, sent.batch, said, vectors)
        if not sent.known:
            try:
                await self._names.prove(said, partial(self._canary, session))
            except TeacherError:
                budget.settle(number, "wrong", tokens=used, micro=micro, model=said, note="another name of the model")
                raise
        self._answered.add(kind)

        def settle() -> None:
            budget.settle(number, "answered", tokens=used, micro=micro, model=said, note=note)

        embedded: list[Embedded | Refused] = [Embedded(tuple(item.position for item in sent.batch), vectors, settle)]
        return embedded, None if cost.said is None else TeacherError(
            f"{self.name}: says that a query cost {money(cost.said, self.currency)}, where "
            f"{money(query.micro, self.currency)} was possible: its counting can't be trusted, and what was possible "
            "is counted; all embeddings are saved: check its prices and its bill before you resume"
        )

    def _doubt(self, doubt: str) -> None:
        sort = doubt.partition(" ")[0]
        if sort and sort not in self._doubted:
            self._doubted.add(sort)
            _log.warning("%s: %s; the note of each query in `vl2v bill --csv` says where", self.name, doubt)

    async def _canary(self, session: Session, kind: Kind, canary: Item) -> None:
        """Query a canary; its embedding goes to `self._names`."""
        found, trouble = await self._request(session, kind, [canary], known=True)
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
        if vectors.ndim != 2 or (self._dim is not None and vectors.shape[1] != self._dim):
            raise ValueError(f"vectors of shape {vectors.shape[1:]}, not ({self._dim},)")
        norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
        if not np.isfinite(norms).all() or not (norms > 0).all():
            raise ValueError("NaN or zero vectors")
        self._dim = vectors.shape[1]
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
        most = ABOUT + len(sent.batch) * (self._dim or DIM) * NUMBER
        try:
            url = self._url + self._adapter.path.format(model=quote(self._model, safe=""), kind=sent.kind.title())
            reply = await self._connected().send("POST", url, headers, sent.body, seconds=TIMEOUT, most=most)
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

    def _learn_prices(self) -> None:
        """Take over the price and the dimension that the vendor lists, where it does; costs nothing."""
        import httpx2

        if not self._adapter.prices or self._listed:
            return
        said = ""
        try:
            line = self._connected()
            request = line.send("GET", f"{self._url}/models", {}, seconds=CONNECT, most=ABOUT)
            response = line.start(request).result()
            self._listed = True
            said = "" if response.status == 200 else str(response.status)
            listed = [] if said else json.loads(response.content)["data"]
            about = next(item for item in listed if item["id"] == self._model)
            price = {kind: int(about["price_micro"][kind]) / MICRO for kind in ("image", "text")}
            dim = int(about["dim"])
        except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError, Unusable) as error:
            said = type(error).__name__
        except (ValueError, KeyError, TypeError, StopIteration):
            pass
        else:
            self.limits = self.limits.model_copy(update={"price": Price(**price), "unverified": ""})
            self._dim = self._dim or dim
        if said and self.limits.unverified:
            before, _, _ = self.limits.unverified.partition("; its list")
            doubt = f"{before}; its list of prices failed: {said}"
            self.limits = self.limits.model_copy(update={"unverified": doubt})

    def _price(self) -> Price:
        if self.limits.price is None:
            kind, model = self.name.partition(":")[0], self._model
            raise TeacherError(
                f'{self.name}: no price known; put [{kind}.models."{model}"] price = {{...}} into vendors.toml in your '
                "configuration folder (docs/paying.md), so that a budget can be enforced"
            )
        if self.limits.unverified and self.limits.price == Price():
            self._say_no_price()
        return self.limits.price

    def _say_no_price(self) -> None:
        """Say once that a server without a price is counted as free.

        Raises:
            TeacherError: it isn't this machine's, and there is a budget, which couldn't be enforced.
        """
        if getattr(self.budget, "budget", None) and not is_loopback(canonical_url(self._url)):
            why = self.limits.unverified.replace("counted as free", "a --budget can't be enforced")
            raise TeacherError(
                f"{self.name}: {why}; put "
                f'[{self._kind}.models."{self._model}"] price = {{ image = ..., text = ... }}, in USD an item, '
                "into vendors.toml in your configuration folder (docs/paying.md); 0 if it costs nothing"
            )
        if self.budget is not None and not self._free:
            self._free = True
            _log.warning("%s: %s", self.name, self.limits.unverified)

    def _open(self) -> Line:
        """Return the line to the vendor, with a price and a key at hand.

        Raises:
            TeacherError: there is no budget, no price or no key.
        """
        if self.budget is None:
            raise TeacherError(
                f"{self.name}: is a paid teacher: query it with `vl2v embed` or `distill`, and a --budget"
            )
        self._learn_prices()
        self._price()
        line = self._connected()
        if self._adapter.key_needed and not self._key:
            raise TeacherError(
                f"{self.name}: wants a key; put it into the environment as {self._adapter.key}, or into a file of "
                f"mode 600 that {self._adapter.key}_FILE names"
            )
        return line

    def _connected(self) -> Line:
        if self._line is None or not self._line.works:
            self._key = read_secret(self._adapter.key)
            self._line = Line(
                self, _Bearer(self._key, self._adapter.header) if self._key else None, self.limits.in_flight
            )
        return self._line

    def _clean(self, words: str) -> str:
        """Return a vendor's words on one line, short, and without the key."""
        line = " ".join(words.split())
        if self._key:
            line = line.replace(self._key, "***")
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


def _fingerprint(name: str, url: str, model: str, dimensions: int | None, limits: Limits) -> str:
    kind = name.partition(":")[0]
    sent = [images.VERSION, limits.formats, limits.image_bytes, limits.image_pixels]
    decides = [kind, url, model, dimensions, *sent, ANSWER_VERSION]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:32]
