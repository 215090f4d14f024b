"""The vendor's HTTP API: OpenAI-compatible embeddings of texts and images, for clients with a key."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging
import math
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import msgspec
import numpy as np
from prometheus_client.core import CounterMetricFamily

from vl2v.teachers.protocol import Teacher
from vl2v.vendor import requests
from vl2v.vendor.addresses import Address, Addresses, Unfetched
from vl2v.vendor.batching import BadImage, Batcher, Image, TooExpensive, Unbilled
from vl2v.vendor.bodies import Bodies, Gone, too_large
from vl2v.vendor.fair import FairQueue, Stopped
from vl2v.vendor.keys import Key, Keys
from vl2v.vendor.meter import Meter, Sale
from vl2v.vendor.requests import BODY, INLINE, Read, Refusal
from vl2v.web.batches import Busy, Waited
from vl2v.web.server import TEXT, Metrics

AT_ONCE = 2**15  # bytes of embeddings that are encoded faster than a thread starts
NEW = 20_000  # objects until garbage is looked for; Python's 700 are those of a few requests at once
TURN = 0.0005  # the interpreter's switch interval in seconds, so that the event loop waits less for threads
KEY_LENGTH = 255  # of an Idempotency-Key

_log = logging.getLogger(__name__)
_STARTED, _NUMBERS = uuid.uuid4().hex, count(1)
_TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "insufficient_quota", 429: "rate_limit_error"}
_JSON = (b"content-type", b"application/json")
_REPLAYED = (b"idempotent-replayed", b"true")  # billed before
_encoder = msgspec.json.Encoder()
Headers = dict[bytes, bytes]
Reply = tuple[int, bytes, list[tuple[bytes, bytes]]]  # status, body, headers
Page = Callable[[Headers], Reply]


class _Counts(Metrics):
    def __init__(self) -> None:
        self.embedded = {"text": 0, "image": 0}
        super().__init__()

    def collect(self) -> Iterator[Any]:
        yield from super().collect()
        queries = CounterMetricFamily("vl2v_questions", "items embedded", labels=["kind"])
        for kind, items in self.embedded.items():
            queries.add_metric([kind], items)
        yield queries


def create_app(
    teacher: Teacher,
    keys: Keys,
    meter: Meter,
    *,
    name: str | None = None,
    batch: int = 64,
    waiting: int = 512,
    addresses: Addresses | None = None,
) -> App:
    """Return the ASGI application.

    Args:
        meter: quotas, rates, the ledger and saved replies.
        name: what clients call the model; default: the teacher's name.
        batch: items in a batch, at most.
        waiting: queued items per client; beyond that requests get 429.
        addresses: hosts that images are fetched from, closed with the application; none by default.
    """
    return App(teacher, keys, meter, name or teacher.name, batch, waiting, addresses or Addresses([], BODY))


class App:
    """The application; see `create_app`."""

    def __init__(
        self, teacher: Teacher, keys: Keys, meter: Meter, name: str, batch: int, waiting: int, addresses: Addresses
    ) -> None:
        self.name = name
        self.dim = teacher.dim
        self.keys = keys
        self.meter = meter
        self.addresses = addresses
        self.metrics = _Counts()
        self.batcher = Batcher(teacher, meter, most=batch, waiting=waiting, observe=self.metrics.batches.observe)
        self.metrics.queued.set_function(lambda: self.batcher.queued)
        self.readers: FairQueue[bytes, Read] = FairQueue(self._parsed_all, most=1, cost=1)
        self.running: dict[bytes, tuple[bytes, asyncio.Future[bytes]]] = {}  # by the digest of the Idempotency-Key
        self.bodies = Bodies()
        self.document = requests.document()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle a request."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        begun = time.perf_counter()
        try:
            status, body, headers = await self._route(scope, receive)
        except Refusal as refusal:
            status, body, headers = _failure(refusal)
        except Gone:
            return
        except Exception:
            _log.exception("a request failed")
            status, body, headers = _failure(Refusal(500, "the model failed", "server_error"))
        headers.append((b"content-length", b"%d" % len(body)))
        self.metrics.answered(status, time.perf_counter() - begun)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _live(self, receive: Any, send: Any) -> None:
        threshold = gc.get_threshold()
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                sys.setswitchinterval(TURN)
                gc.set_threshold(NEW)  # what requests leave is freed without
            if message["type"] == "lifespan.shutdown":
                await asyncio.to_thread(self.readers.close)
                await asyncio.to_thread(self.batcher.close)
                await self.addresses.close()
                gc.set_threshold(*threshold)
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return

    async def _route(self, scope: Any, receive: Any) -> Reply:
        path, method = scope["path"], scope["method"]
        headers: Headers = dict(reversed(scope["headers"]))  # of several of one name the first
        if path == "/v1/embeddings":
            return await self._embeddings(headers, receive) if method == "POST" else _wrong_method("POST")
        pages: dict[str, Page] = {
            "/v1/models": self._models,
            "/health": lambda headers: _json({"status": "ok"}),
            "/metrics": lambda headers: (200, self.metrics.text(), [(b"content-type", TEXT.encode())]),
            "/openapi.json": lambda headers: (200, self.document, [_JSON]),
        }
        page = pages.get(path)
        if page is None and path.startswith("/v1/models/"):
            page = self._model(path.removeprefix("/v1/models/"))
        if page is None:
            raise Refusal(404, "no such address", "not_found")
        return page(headers) if method == "GET" else _wrong_method("GET")

    def _key(self, headers: Headers) -> Key:
        key = self.keys.of_header(headers.get(b"authorization", b""))
        if key is None:
            raise Refusal(401, "a valid key is needed", "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return key

    def _about(self, key: Key) -> dict[str, Any]:
        return {
            "id": self.name,
            "object": "model",
            "created": 0,
            "owned_by": "vl2v",
            "dim": self.dim,
            "modalities": ["text", "image"],
            "limits": {
                "images": requests.IMAGES,
                "texts": requests.TEXTS,
                "bytes": BODY,
                "pixels": requests.PIXELS,
                "image_pixels": requests.IMAGE_PIXELS,
                "characters": requests.CHARACTERS,
                "text_characters": requests.TEXT_LENGTH,
            },
            "price_micro": {"image": key.price_of("image"), "text": key.price_of("text")},
        }

    def _models(self, headers: Headers) -> Reply:
        return _json({"object": "list", "data": [self._about(self._key(headers))]})

    def _model(self, name: str) -> Page:
        def about(headers: Headers) -> Reply:
            key = self._key(headers)
            if name != self.name:
                raise Refusal(404, f"no model {name[:100]!r}; there is {self.name!r}", "model_not_found", "model")
            return _json(self._about(key))

        return about

    async def _embeddings(self, headers: Headers, receive: Any) -> Reply:
        key = self._key(headers)
        delay = self.meter.wait(key)
        if delay:
            raise Refusal(429, "too many requests a minute", "rate_limit_exceeded", headers=_after(delay))
        length = headers.get(b"content-length") or b"0"
        if not length.isdigit() or int(length[:20]) > BODY:
            raise too_large()
        if self.batcher.full(key.name):  # before its body is read
            refusal = _why(Busy("too many requests are waiting"))
            refusal.headers["Connection"] = "close"
            raise refusal
        parts: list[bytes] = []
        try:
            body = await self.bodies.read(key.name, receive, parts)
            reply, again = await self._reply(key, body, headers.get(b"idempotency-key", b""))
            return 200, reply, [_JSON, _REPLAYED] if again else [_JSON]
        finally:
            self.bodies.release(key.name, parts)

    async def _reply(self, key: Key, body: bytes, idempotency_key: bytes) -> tuple[bytes, bool]:
        """Return the reply, and whether it was billed before: requests with one Idempotency-Key are billed once."""
        small = len(body) <= INLINE
        request = self._parsed(body) if small else await self._parsed_apart(key, body)
        if not idempotency_key:
            return await self._sell(key, request, b""), False
        if len(idempotency_key) > KEY_LENGTH:
            raise Refusal(400, f"Idempotency-Key: over {KEY_LENGTH} bytes", "invalid_request")
        digest = hashlib.sha256(key.name.encode() + b"\0" + idempotency_key).digest()
        running = self.running.get(digest)
        if running is not None:
            before, future = running
            _check_same(before, request.body_digest)
            return await asyncio.shield(future), True
        saved = self.meter.reply(digest)
        if saved is not None:
            _check_same(saved[0].body_digest, request.body_digest)
            return await self._encoded(request, *saved), True
        future = asyncio.get_running_loop().create_future()
        self.running[digest] = request.body_digest, future
        try:
            reply = await self._sell(key, request, digest)
            future.set_result(reply)
        except BaseException as error:
            future.set_exception(error if isinstance(error, Exception) else Stopped("the server is being stopped"))
            future.exception()  # retrieved, even if nobody else waits for it
            raise
        finally:
            del self.running[digest], future  # a failure must not hold its own frame, and with it the body
        return reply, False

    def _parsed(self, body: bytes) -> Read:
        return requests.read(body, self.name, self.dim, self.addresses)

    async def _parsed_apart(self, key: Key, body: bytes) -> Read:
        """Parse a large body in a thread, one at a time, clients in turns."""
        try:
            (found,) = await self.readers.submit(key.name, "body", [body], [len(body)])
        except (Waited, Stopped) as error:
            raise _why(error) from None
        read: Read = found
        return read

    def _parsed_all(self, kind: str, bodies: list[bytes]) -> list[Read | Exception]:
        return [self._parsed(body) for body in bodies]

    async def _sell(self, key: Key, request: Read, digest: bytes) -> bytes:
        """Return the response to a request, after billing it.

        Raises:
            Refusal: it failed; nothing is billed.
        """
        if not self.meter.hold(key, request.count):
            raise Refusal(403, "the quota of this key is used up", "insufficient_quota")
        micro = key.price_of(request.kind) * request.count
        number = f"{_STARTED}-{next(_NUMBERS)}"
        body_digest = request.body_digest if digest else b""
        sale = Sale(key.name, request.kind, request.count, micro, number, digest, body_digest)
        try:
            if request.kind == "text":
                vectors = await self.batcher.texts(request.texts, sale)
            else:
                vectors = await self.batcher.images(await self._fetched(request.images), sale)
        except BaseException as error:
            self.meter.release(key, request.count)
            if isinstance(error, Exception):
                raise _why(error) from None
            raise
        self.metrics.embedded[request.kind] += request.count
        return await self._encoded(request, sale, vectors)

    async def _fetched(self, images: list[Image | Address]) -> list[Image]:
        """Return the images, after fetching those that were given by address.

        Raises:
            Unfetched, Refusal: one can't be fetched, or they are too large.
        """
        there = {i: image for i, image in enumerate(images) if isinstance(image, Address)}
        data = dict(zip(there, await self.addresses.fetch(list(there.values())), strict=True)) if there else {}
        found = [image if isinstance(image, Image) else requests.image_of(i, data[i]) for i, image in enumerate(images)]
        if there:
            requests.check_pixels(found)
        return found

    async def _encoded(self, request: Read, sale: Sale, vectors: bytes) -> bytes:
        """Return a response body; a large one is encoded in a thread."""
        as_base64 = request.query.encoding_format == "base64"
        if len(vectors) > AT_ONCE:
            return await asyncio.to_thread(_encode, as_base64, vectors, sale, self.name)
        return _encode(as_base64, vectors, sale, self.name)


def _encode(as_base64: bool, vectors: bytes, sale: Sale, model: str) -> bytes:
    """Return a response body; a large one is encoded row by row, so that other threads get their turn."""
    size, data = len(vectors) // sale.count, []
    for index in range(sale.count):
        row = vectors[index * size : (index + 1) * size]
        one: Any = row if as_base64 else np.frombuffer(row, "<f4").tolist()  # bytes become base64
        if len(vectors) > AT_ONCE:
            one = msgspec.Raw(_encoder.encode(one))
        data.append({"object": "embedding", "index": index, "embedding": one})
    return _encoder.encode(
        {
            "object": "list",
            "model": model,
            "id": sale.request,
            "created": int(sale.at),
            "data": data,
            "usage": {"prompt_tokens": sale.count, "total_tokens": sale.count, "micro": sale.micro},
        }
    )


def _why(error: Exception) -> Refusal:
    """Return the refusal for an error; what the model itself said goes to the log only."""
    match error:
        case Refusal():
            return error
        case Stopped():
            return Refusal(503, f"{error}; nothing was billed", "overloaded", headers=_after(5))
        case Waited():
            return Refusal(503, f"{error}, try again", "overloaded", headers=_after(1))
        case Busy():
            return Refusal(429, f"{error}, try again", "overloaded", headers=_after(1))
        case Unfetched():
            return Refusal(400, f"input: {error}", "invalid_image", "input")
        case BadImage():
            where = f"input[{error.index}]"
            return Refusal(400, f"{where} can't be decoded: {error}", "invalid_image", where)
        case TooExpensive():
            return Refusal(400, f"input: {error}", "too_expensive", "input")
        case Unbilled():
            return Refusal(503, "the ledger can't be written; nothing was billed", "server_error")
    _log.error("a request failed", exc_info=error)
    return Refusal(500, "the model failed; nothing was billed", "server_error")


def _check_same(before: bytes, now: bytes) -> None:
    if before != now:
        raise Refusal(409, "this Idempotency-Key was used for another request", "idempotency_conflict")


def _after(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


def _wrong_method(allowed: str) -> Reply:
    raise Refusal(405, f"only {allowed} is allowed here", "method_not_allowed", headers={"Allow": allowed})


def _json(content: Any) -> Reply:
    return 200, _encoder.encode(content), [_JSON]


def _failure(refusal: Refusal) -> Reply:
    status = refusal.status
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    error = {"message": str(refusal), "type": kind, "param": refusal.param, "code": refusal.code}
    headers = [(name.lower().encode(), value.encode()) for name, value in refusal.headers.items()]
    return status, _encoder.encode({"error": error}), [_JSON, *headers]
