"""The one client of all vendors: batches, several requests in flight, retries, and a purse that pays for each.

A retry spends money as a first try does, so every attempt is reserved before it leaves. What an attempt cost is known
from its answer; where there is none it may have been counted by the vendor, and stays counted here.
"""

from __future__ import annotations

import hashlib
import json
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vl2v.errors import DataError, TeacherError, VL2VError
from vl2v.secret import read_secret
from vl2v.teachers.protocol import ANSWER_VERSION, EncodedImage, Vectors
from vl2v.teachers.remote import pictures
from vl2v.teachers.remote.failures import WORDS, retry_after, words_of
from vl2v.teachers.remote.pace import Pace
from vl2v.teachers.remote.pictures import Picture, prepare
from vl2v.teachers.remote.terms import Price, Terms
from vl2v.teachers.remote.wires import Wire, vector
from vl2v.teachers.rented import MICRO, Answered, Forecast, Kind, Purse, Query, Refused, Status

if TYPE_CHECKING:
    import httpx2

ATTEMPTS = 8
PATIENCE = 900.0  # seconds that one request may take with all its retries
TIMEOUT = 120.0  # seconds for one answer
CONNECT = 10.0
HEAD = 512  # bytes of a request beside its items, and of each item beside its text or picture, at most
FRAME = 128

_OUT_OF_MONEY = ("insufficient_balance", "insufficient_quota", "insufficient balance", "exceeded your current quota")
_OF_MONEY = ("billing", "payment")  # where the status doesn't mean "too fast": then they are the way to higher limits


class _TryAgain(Exception):
    """An attempt that came to nothing; `after` is how long the vendor wants to be left alone."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class _Rejected(Exception):
    """A request that the vendor won't take as it is: one of its items may be at fault."""


@dataclass(frozen=True)
class _Item:
    position: int
    thing: Picture | str
    tokens: int

    @property
    def bytes(self) -> int:
        """Of a request, at most."""
        size = len(json.dumps(self.thing)) if isinstance(self.thing, str) else 4 * (len(self.thing.data) // 3 + 1)
        return size + FRAME


class _Trouble:
    """The first error of a session; it is raised when all that is in flight, and so is paid for, has been handed on."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.over = False

    def close(self) -> None:
        self.over = True

    def add(self, error: BaseException | None) -> None:
        self.error = self.error or error

    def patient(self, answer: Answered | Refused) -> Answered | Refused:
        """Return the answer such that an error in settling it waits, too."""
        return replace(answer, settle=self._patient(answer.settle)) if isinstance(answer, Answered) else answer

    def _patient(self, settle: Callable[[], None]) -> Callable[[], None]:
        def settled() -> None:
            try:
                settle()
            except VL2VError as error:
                if self.over:
                    raise
                self.add(error)

        return settled


class RemoteTeacher:
    """A teacher behind a vendor's API.

    Nothing is asked without a purse; `fingerprint` needs no network, and `forecast` costs nothing.

    Args:
        name: as it was asked for.
        wire: how the vendor speaks.
        terms: prices and limits.
        url: base URL.
        model: its name.
        dimensions: wanted, where the vendor offers a choice.
    """

    logit_scale: float | None = None

    def __init__(self, name: str, wire: Wire, terms: Terms, url: str, model: str, dimensions: int | None) -> None:
        self.name = name
        self.purse: Purse | None = None
        self.currency = terms.currency
        self.terms = terms
        self._wire = wire
        self._url = url.rstrip("/")
        self._model = model
        self._dimensions = dimensions
        self._dim = dimensions or terms.dim
        self._said: str | None = None  # the model's name in answers
        self._most: dict[Kind, float] = {"image": 0.0, "text": 0.0}  # tokens of an item, the most so far
        self._dearest: dict[Kind, int] = {"image": 0, "text": 0}  # what an item was said to cost, the most so far
        self._pace = Pace(terms.requests_a_minute, terms.items_a_minute, terms.tokens_a_minute)
        self._lock = threading.Lock()
        self._client: httpx2.Client | None = None
        self._key = ""
        self._answered: set[Kind] = set()
        self._told = False  # whether the vendor was asked for its prices
        self.fingerprint = _fingerprint(name, self._url, model, dimensions, terms)

    def __repr__(self) -> str:
        return f"RemoteTeacher({self.name!r})"

    @property
    def doubt(self) -> str:
        """See `vl2v.teachers.rented.Rented`."""
        return self.terms.unverified

    @property
    def dim(self) -> int:
        """d; where nobody knows it yet, one text is asked about."""
        if self._dim is None:
            self.embed_texts(["a photo"])
        assert self._dim is not None
        return self._dim

    def forecast(self, kind: Kind, sizes: Iterable[tuple[int, int]]) -> Forecast:
        """See `vl2v.teachers.rented.Rented`."""
        self._learn_prices()
        price = self._price()
        tokens = [self.terms.tokens(kind, size) for size in sizes]
        requests = -(-len(tokens) // self.terms.items(kind))
        limits = (
            (requests, self.terms.requests_a_minute),
            (len(tokens), self.terms.items_a_minute),
            (sum(tokens), self.terms.tokens_a_minute),
        )
        seconds = max((60.0 * count / limit for count, limit in limits if limit), default=0.0)
        return Forecast(requests, sum(tokens), price.micro(kind, len(tokens), sum(tokens)), seconds)

    def embed_images(self, images: Sequence[EncodedImage]) -> Vectors:
        """Return I(x) [n, d], unit rows, in order.

        Raises:
            BudgetReached, TeacherError: see `answers`; also for a picture that the vendor won't take.
        """
        return self._embed("image", images)

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """Return the texts' embeddings [n, d], unit rows, in order. Raises as `embed_images` does."""
        return self._embed("text", texts)

    def answers(self, kind: Kind, items: Iterable[EncodedImage] | Iterable[str]) -> Iterator[Answered | Refused]:
        """See `vl2v.teachers.rented.Rented`."""
        self._open()
        trouble = _Trouble()
        batches = self._batches(kind, items)
        workers = ThreadPoolExecutor(self.terms.in_flight, thread_name_prefix="vendor")
        with closing(trouble), workers as pool:
            running: set[Future[tuple[list[Answered | Refused], Exception | None]]] = set()
            room = self.terms.in_flight if kind in self._answered else 1  # the first alone tells what others may cost
            while True:
                try:
                    while trouble.error is None and len(running) < room and (batch := next(batches, None)):
                        running.add(pool.submit(self._ask, kind, batch))
                    done = wait(running, return_when=FIRST_COMPLETED).done
                except (Exception, KeyboardInterrupt) as error:  # what is in flight is paid for: wait for it first
                    trouble.add(error)
                    continue
                if not running:
                    break
                running -= done
                for future in done:
                    found, wrong = future.result()
                    trouble.add(wrong)
                    yield from map(trouble.patient, found)
                room = self.terms.in_flight
        if trouble.error is not None:
            raise trouble.error

    def _embed(self, kind: Kind, items: Sequence[EncodedImage] | Sequence[str]) -> Vectors:
        rows: dict[int, Any] = {}
        for answer in self.answers(kind, items):
            if isinstance(answer, Refused):
                thing = items[answer.position]
                what = thing if isinstance(thing, str) else thing.name
                raise TeacherError(f"{self.name}: won't take {what!r}: {answer.reason}")
            answer.settle()
            rows.update(zip(answer.positions, answer.vectors, strict=True))
        return np.stack([rows[i] for i in range(len(items))]) if rows else np.zeros((0, self.dim), np.float32)

    def _batches(self, kind: Kind, items: Iterable[EncodedImage | str]) -> Iterator[list[_Item]]:
        """Yield requests within the vendor's limits of items, bytes and tokens."""
        terms = self.terms
        batch: list[_Item] = []
        size, tokens = HEAD, 0
        for position, thing in enumerate(items):
            item = self._item(position, thing)
            size, tokens = size + item.bytes, tokens + item.tokens
            if len(batch) == terms.items(kind) or size > terms.request_bytes or tokens > terms.most_tokens:
                if batch:
                    yield batch
                batch, size, tokens = [], HEAD + item.bytes, item.tokens
            batch.append(item)
        if batch:
            yield batch

    def _item(self, position: int, thing: EncodedImage | str) -> _Item:
        if isinstance(thing, str):
            return _Item(position, thing, self.terms.tokens("text", (len(thing.encode()), 1)))
        try:
            picture = prepare(thing.data, self.terms.formats, self.terms.image_bytes, self.terms.image_pixels)
        except DataError as error:
            raise DataError(f"{thing.name}: {error}") from None
        return _Item(position, picture, self.terms.tokens("image", (picture.width, picture.height)))

    def _ask(self, kind: Kind, batch: list[_Item]) -> tuple[list[Answered | Refused], Exception | None]:
        """Return what came of a request, and what ends the session; one bad item in it is looked for by halves."""
        try:
            return [self._request(kind, batch)], None
        except _Rejected as error:
            reason = str(error)
        except _TryAgain as error:
            return [], TeacherError(
                f"{self.name}: asked {ATTEMPTS} times in vain, the last time: {error}; all answers are kept, the "
                "same command goes on"
            )
        except Exception as error:  # the ledger's, too: others have been answered meanwhile
            return [], error
        if len(batch) == 1:
            return [Refused(batch[0].position, reason)], None
        middle = len(batch) // 2
        found, trouble = self._ask(kind, batch[:middle])
        if trouble is None:
            more, trouble = self._ask(kind, batch[middle:])
            found += more
        return found, trouble

    def _request(self, kind: Kind, batch: list[_Item]) -> Answered:
        """Try until there is an answer that can be used.

        Raises:
            _Rejected, _TryAgain: see there.
            TeacherError: there is no point in trying.
        """
        import stamina

        things: Any = [item.thing for item in batch]
        body = json.dumps(self._wire.body(self._model, kind, things, self._dimensions)).encode()
        same = str(uuid.uuid4())  # a vendor that honours it bills the attempts at one request once
        backoff = {"wait_initial": 0.2, "wait_max": 30.0, "wait_jitter": 1.0}
        for attempt in stamina.retry_context(on=_again, attempts=ATTEMPTS, timeout=PATIENCE, **backoff):
            with attempt:
                return self._attempt(kind, batch, body, same)
        raise AssertionError

    def _attempt(self, kind: Kind, batch: list[_Item], body: bytes, same: str) -> Answered:
        assert self.purse is not None
        purse, count = self.purse, len(batch)
        tokens = max(sum(item.tokens for item in batch), int(np.ceil(self._most[kind] * count)))
        micro = max(self._price().micro(kind, count, tokens), self._dearest[kind] * count)
        self._pace.wait(1, count, tokens)
        number = purse.reserve(Query(kind, count, tokens, micro))
        response, trouble, status = self._send(body, same)
        if response is None:
            purse.settle(number, status, note=trouble)
            raise _TryAgain(trouble)
        if response.status_code != 200:
            failure, status = self._failure(response)
            purse.settle(number, status, note=f"{response.status_code}")
            raise failure
        return self._read(kind, batch, response.content, number)

    def _read(self, kind: Kind, batch: list[_Item], content: bytes, number: int) -> Answered:
        """Return a checked answer.

        Raises:
            _TryAgain: it can't be used; it is paid for all the same.
        """
        assert self.purse is not None
        purse, count = self.purse, len(batch)
        try:
            answer = json.loads(content)
            tokens = self._wire.tokens(answer)
        except (ValueError, AttributeError, TypeError, KeyError):
            purse.settle(number, "lost", note="not an answer in JSON")
            raise _TryAgain("an answer that isn't JSON") from None
        said, micro = str(answer.get("model") or ""), self._wire.micro(answer)
        note = self.doubt if micro is None else ""
        self._dearest[kind] = max(self._dearest[kind], -(-(micro or 0) // count))
        if tokens is not None:
            micro = self._price().micro(kind, count, tokens) if micro is None else micro
            self._most[kind] = max(self._most[kind], tokens / count)
        try:
            vectors = self._vectors(self._wire.rows(answer), count)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            wrong = f"an answer that can't be used ({self._clean(str(error))})"
            purse.settle(number, "wrong", tokens=tokens, micro=micro, model=said, note=wrong)
            raise _TryAgain(wrong) from None
        with self._lock:
            if self._said is not None and said != self._said:
                purse.settle(number, "wrong", tokens=tokens, micro=micro, model=said, note="another model")
                raise TeacherError(f"{self.name}: the model changed from {self._said!r} to {said!r} while it was asked")
            self._said = said

        self._answered.add(kind)

        def settle() -> None:
            purse.settle(number, "answered", tokens=tokens, micro=micro, model=said, note=note)

        return Answered(tuple(item.position for item in batch), vectors, settle)

    def _vectors(self, rows: list[Any], count: int) -> Vectors:
        """Return unit rows [n, d].

        Raises:
            ValueError: wrong count or dimension, NaN, zero.
        """
        if len(rows) != count:
            raise ValueError(f"{len(rows)} vectors for {count} questions")
        vectors = np.stack([vector(row) for row in rows])
        with self._lock:
            if vectors.ndim != 2 or (self._dim is not None and vectors.shape[1] != self._dim):
                raise ValueError(f"vectors of shape {vectors.shape[1:]}, not ({self._dim},)")
            norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
            if not np.isfinite(norms).all() or not (norms > 0).all():
                raise ValueError("NaN or zero vectors")
            self._dim = vectors.shape[1]
        unit: Vectors = (vectors / norms).astype(np.float32)
        return unit

    def _send(self, body: bytes, same: str) -> tuple[httpx2.Response | None, str, Status]:
        """Return the response; or why there is none, and whether the vendor may have counted the request."""
        import httpx2

        headers = {"Content-Type": "application/json", "Idempotency-Key": same}
        try:
            return self._connected().post(self._url + self._wire.path, content=body, headers=headers), "", "answered"
        except (
            httpx2.ConnectError,
            httpx2.ConnectTimeout,
            httpx2.PoolTimeout,
            httpx2.InvalidURL,
            httpx2.UnsupportedProtocol,
        ) as error:
            return None, f"no connection ({type(error).__name__})", "rejected"
        except httpx2.RequestError as error:
            return None, f"the connection broke ({type(error).__name__})", "lost"

    def _failure(self, response: httpx2.Response) -> tuple[Exception, Status]:
        """Return what a status other than 200 means, and whether it may have been billed."""
        status, words = response.status_code, self._clean(words_of(response))
        after = retry_after(response)
        signs = _OUT_OF_MONEY if status == 429 else (*_OUT_OF_MONEY, *_OF_MONEY)
        if status == 402 or (status in (403, 429) and any(sign in words.lower() for sign in signs)):
            return TeacherError(f"{self.name}: the vendor says that the money or quota is used up: {words}"), "rejected"
        busy = status in (429, 503)
        if busy or status >= 500 or status in (408, 425, 499):
            outcome: Status = "rejected" if busy else "lost"
            if after is not None and after > PATIENCE:
                wait = f"the vendor wants to be left alone for {after / 60:.0f} minutes"
                return TeacherError(f"{self.name}: {status}, {wait}; all answers are kept: {words}"), outcome
            if busy:
                self._pace.hold(after or 0.0)
                words = f"too fast or too busy: {words}"
            return _TryAgain(f"{status}, {words}", after), outcome
        if status in (400, 413, 422):
            return _Rejected(f"{status} {words} {self._wire.hint}".strip()), "rejected"
        if status in (401, 403):
            return TeacherError(
                f"{self.name}: {status}, the key in {self._wire.key} isn't accepted: {words}"
            ), "rejected"
        if status == 404:
            return TeacherError(f"{self.name}: 404, no such model or address: {words}"), "rejected"
        return TeacherError(f"{self.name}: {status}: {words}"), "rejected"

    def _learn_prices(self) -> None:
        """Take over the price and the dimension that the vendor itself tells, where it does; costs nothing."""
        import httpx2

        if not self._wire.prices or self._told:
            return
        said = ""
        try:
            response = self._connected().get(f"{self._url}/models", timeout=CONNECT)
            self._told = True
            said = "" if response.status_code == 200 else str(response.status_code)
            listed = [] if said else response.json()["data"]
            about = next(item for item in listed if item["id"] == self._model)
            price = {kind: int(about["price_micro"][kind]) / MICRO for kind in ("image", "text")}
            dim = int(about["dim"])
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            said = type(error).__name__
        except (ValueError, KeyError, TypeError, StopIteration):
            pass
        else:
            self.terms = self.terms.model_copy(update={"price": Price(**price), "unverified": ""})
            self._dim = self._dim or dim
        if said and self.terms.unverified:
            known, _, _ = self.terms.unverified.partition("; asked")
            doubt = f"{known}; asked for its prices it said {said}"
            self.terms = self.terms.model_copy(update={"unverified": doubt})

    def _price(self) -> Price:
        if self.terms.price is None:
            kind, model = self.name.partition(":")[0], self._model
            raise TeacherError(
                f'{self.name}: no price known; put [{kind}.models."{model}"] price = {{...}} into vendors.toml in your '
                "configuration folder (docs/paying.md), so that a budget can be kept"
            )
        return self.terms.price

    def _open(self) -> None:
        """Have a client, a price and a key.

        Raises:
            TeacherError: there is no purse, no price or no key.
        """
        if self.purse is None:
            raise TeacherError(f"{self.name}: is paid for: ask it through `vl2v embed` or `distill`, with a --budget")
        self._learn_prices()
        self._price()
        self._connected()
        if self._wire.key_needed and not self._key:
            raise TeacherError(
                f"{self.name}: wants a key; put it into the environment as {self._wire.key}, or into a file of "
                f"mode 600 that {self._wire.key}_FILE names"
            )

    def _connected(self) -> httpx2.Client:
        import httpx2

        if self._client is None:
            self._key = read_secret(self._wire.key)
            self._client = httpx2.Client(
                auth=_Bearer(self._key) if self._key else None,
                timeout=httpx2.Timeout(TIMEOUT, connect=CONNECT),
                limits=httpx2.Limits(max_connections=self.terms.in_flight),
                follow_redirects=False,
            )
        return self._client

    def _clean(self, words: str) -> str:
        """Return a vendor's words on one line, short, and without the key."""
        line = " ".join(words.split())
        if self._key:
            line = line.replace(self._key, "***")
        return line[:WORDS]


def _Bearer(key: str) -> Any:  # noqa: N802
    """Return what puts the key into a request at the moment when it leaves, and nowhere else."""
    import httpx2

    class Bearer(httpx2.Auth):
        def auth_flow(self, request: httpx2.Request) -> Any:
            request.headers["Authorization"] = f"Bearer {key}"
            yield request

    return Bearer()


def _again(error: Exception) -> bool | float:
    if not isinstance(error, _TryAgain):
        return False
    return True if error.after is None else error.after


def _fingerprint(name: str, url: str, model: str, dimensions: int | None, terms: Terms) -> str:
    kind = name.partition(":")[0]
    sent = [pictures.VERSION, terms.formats, terms.image_bytes, terms.image_pixels]
    decides = [kind, url, model, dimensions, *sent, ANSWER_VERSION]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:32]
