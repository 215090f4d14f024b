"""The HTTP side: OpenAI-compatible embeddings of texts and pictures, for clients with a key."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import logging
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Annotated, Any, Literal, cast

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from prometheus_client import Counter
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from vl2v.teachers import EncodedImage, Teacher
from vl2v.vendor import desk
from vl2v.vendor.addresses import Address, Addresses, Unfetched
from vl2v.vendor.desk import BadPicture, Desk, Unbilled
from vl2v.vendor.keys import Key, Keys
from vl2v.vendor.meter import Meter, Sale
from vl2v.web.batches import Busy, Waited
from vl2v.web.bodies import Bodies
from vl2v.web.metrics import Metrics

IMAGES, TEXTS = 32, 2048  # a request
TEXT_LENGTH = 10_000
BODY = 64 * 2**20
AT_ONCE = 8192  # numbers that are written as JSON in less time than a thread takes to start
REMEMBERED = 600.0  # seconds that a reply is kept for the same Idempotency-Key
REPLIES = 256 * 2**20  # bytes of such replies

Text = Annotated[str, Field(min_length=1)]


class Question(BaseModel):
    """What is asked: texts, or pictures as data URIs (or addresses, of hosts that the server fetches from)."""

    model_config = ConfigDict(extra="forbid")

    model: str
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=TEXTS)]
    modality: Literal["text", "image"] = "text"
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = Field(default=None, description="not looked at")


class Embedding(BaseModel):
    """One answer; base64 is of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """What is billed: a question is a token, and `micro` is millionths of the currency."""

    prompt_tokens: int
    total_tokens: int
    micro: int


class Answer(BaseModel):
    """The answers, in the order of the questions."""

    object: Literal["list"]
    model: str
    id: str
    created: int
    data: list[Embedding]
    usage: Usage


class Problem(BaseModel):
    """What was wrong, in OpenAI's form."""

    message: str
    type: str
    param: str | None
    code: str | None


class Failure(BaseModel):
    """A problem."""

    error: Problem


@dataclass(frozen=True)
class _Reply:
    status: int
    body: bytes


class Refusal(HTTPException):
    """An answer other than 200, in OpenAI's form."""

    def __init__(
        self, status: int, message: str, code: str, param: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(status, message, headers)
        self.code = code
        self.param = param


# The body and the key are read by hand, which takes half the time; so they are described by hand, too.
_WITH_KEY: dict[str, Any] = {"security": [{"key": []}]}
_ASKED = {
    **_WITH_KEY,
    "requestBody": {"required": True, "content": {"application/json": {"schema": Question.model_json_schema()}}},
    "parameters": [
        {
            "name": "Idempotency-Key",
            "in": "header",
            "schema": {"type": "string"},
            "description": "asked again with the same body within ten minutes, the answer is the same and billed once",
        }
    ],
}
STATUSES = {
    400: "a picture can't be decoded or is not fetched, or the body isn't JSON",
    401: "no key, or a wrong one",
    403: "the quota is used up",
    404: "no such model",
    409: "the Idempotency-Key was used for another request",
    408: "the body came too slowly",
    413: "the body is too large",
    422: "the body isn't of the form that is described here",
    429: "too fast, or too many are waiting; Retry-After tells for how long",
    500: "the model failed; nothing was billed",
    503: "waited too long, the ledger can't be written, or the server is being stopped; nothing was billed",
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": words, "model": Failure} for status, words in STATUSES.items()
}
_log = logging.getLogger(__name__)
_STARTED, _NUMBERS = uuid.uuid4().hex, count(1)
_TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "insufficient_quota", 429: "rate_limit_error"}


def create_app(
    teacher: Teacher,
    keys: Keys,
    meter: Meter,
    *,
    name: str | None = None,
    batch: int = 64,
    waiting: int = 512,
    addresses: Addresses | None = None,
) -> FastAPI:
    """Return the application.

    Args:
        teacher: who answers; asked in one thread.
        keys: who may ask.
        meter: quotas, rates and the ledger.
        name: what clients call the model; default: the teacher's name.
        batch: things that the teacher is asked about at once.
        waiting: things that may wait for their turn; more are answered with 429.
        addresses: where pictures are fetched from, closed with the application; by default from nowhere.
    """
    name = name or teacher.name
    metrics = _Metrics()
    counter = Desk(teacher, meter, most=batch, waiting=waiting, observe=metrics.batches.observe)
    metrics.queued.set_function(lambda: counter.queued)
    replies = _Replies()
    addresses = addresses or Addresses([], BODY)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        counter.close()
        await addresses.close()

    app = FastAPI(title="vl2v vendor", version="1", docs_url=None, redoc_url=None, lifespan=lifespan)

    def the_key(request: Request) -> Key:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        key = keys.find(given) if scheme.lower() == "bearer" else None
        if key is None:
            raise Refusal(401, "a valid key is needed", "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return key

    @app.post("/v1/embeddings", response_model=Answer, responses=RESPONSES, openapi_extra=_ASKED)
    async def embeddings(request: Request) -> Response:
        """Embed texts, or pictures given as data URIs, in one shared space."""
        key = the_key(request)
        body, idempotency_key = await request.body(), request.headers.get("idempotency-key")
        try:
            question = Question.model_validate_json(body)
        except ValidationError as error:
            raise _invalid(error) from None
        if question.model != name:
            message = f"no model {question.model[:100]!r}; there is {name!r}"
            raise Refusal(404, message, "model_not_found", "model")

        async def fresh() -> _Reply:
            return await _sell(question, key, counter, meter, name, addresses)

        if idempotency_key is None:
            reply = await fresh()
        else:
            asked = hashlib.sha256(body).digest()
            reply = await replies.of((key.name, idempotency_key), asked, fresh)
        metrics.questions.labels(question.modality).inc(_count(question))
        return Response(reply.body, reply.status, media_type="application/json")

    @app.get("/v1/models", responses={401: RESPONSES[401]}, openapi_extra=_WITH_KEY)
    async def models(request: Request) -> dict[str, Any]:
        """Tell which model answers, what it takes, and what a question costs this key."""
        key = the_key(request)
        about = {
            "id": name,
            "object": "model",
            "owned_by": "vl2v",
            "dim": teacher.dim,
            "modalities": ["text", "image"],
            "limits": {"images": IMAGES, "texts": TEXTS, "bytes": BODY},
            "price_micro": {"image": key.price, "text": key.price},
        }
        return {"object": "list", "data": [about]}

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Tell that the server is there."""
        return {"status": "ok"}

    @app.get("/metrics", response_class=Response)
    def metrics_page() -> Response:
        """Return Prometheus metrics; they name no client."""
        return metrics.page()

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        code, param = getattr(error, "code", None), getattr(error, "param", None)
        return _failure(error.status_code, str(error.detail), code, param, dict(error.headers or {}))

    @app.exception_handler(Exception)
    def failed(request: Request, error: Exception) -> JSONResponse:
        return _failure(500, "the model failed", "server_error")

    app.add_middleware(Bodies, most=BODY, refusal=_failure, observe=metrics.answered)
    app.openapi_schema = {**app.openapi()}
    app.openapi_schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return app


def _invalid(error: ValidationError) -> Refusal:
    """Return what is said of a body that is not a `Question`."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    status = 400 if first["type"] == "json_invalid" else 422
    return Refusal(status, f"{where}: {first['msg']}".removeprefix(": "), first["type"], where or None)


class _Metrics(Metrics):
    def __init__(self) -> None:
        super().__init__()
        self.questions = Counter("vl2v_questions", "things that were embedded", ["kind"], registry=self.registry)


class _Replies:
    """Replies of the last minutes by (client, Idempotency-Key): asked again, they are not billed again."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str], tuple[float, bytes, asyncio.Task[_Reply]]] = OrderedDict()

    async def of(self, who: tuple[str, str], asked: bytes, fresh: Callable[[], Any]) -> _Reply:
        """Return the reply to this very request, made or being made before, or a fresh one."""
        self._forget()
        if who in self._kept:
            _, before, task = self._kept[who]
            if before != asked:
                raise Refusal(409, "this Idempotency-Key was used for another request", "idempotency_conflict")
        else:
            task = asyncio.create_task(fresh())
            self._kept[who] = (time.monotonic(), asked, task)
        try:
            return await asyncio.shield(task)
        except Exception:
            self._kept.pop(who, None)  # nothing was billed: it may be tried again
            raise

    def _forget(self) -> None:
        size = sum(len(task.result().body) for _, _, task in self._kept.values() if _good(task))
        while self._kept:
            at, _, task = next(iter(self._kept.values()))
            if not task.done() or (at > time.monotonic() - REMEMBERED and size <= REPLIES):
                break
            self._kept.popitem(last=False)
            size -= len(task.result().body) if _good(task) else 0


def _good(task: asyncio.Task[_Reply]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


async def _sell(question: Question, key: Key, counter: Desk, meter: Meter, model: str, addresses: Addresses) -> _Reply:
    """Return the answer to a question, billed by then.

    Raises:
        Refusal: it can't be answered; nothing is billed.
    """
    things = _things(question, addresses)
    delay = meter.wait(key)
    if delay:
        raise Refusal(429, "too many requests a minute", "rate_limit_exceeded", headers=_after(delay))
    if not meter.hold(key, len(things)):
        raise Refusal(403, "the quota of this key is used up", "insufficient_quota")
    number = f"{_STARTED}-{next(_NUMBERS)}"
    sale = Sale(key.name, question.modality, len(things), key.price * len(things), number)
    try:
        rows = await counter.ask(desk.Request(await _fetched(things, addresses), sale))
    except Exception as error:
        meter.release(key, len(things))
        raise _why(error) from None
    if rows.size > AT_ONCE:
        return _Reply(200, await asyncio.to_thread(_encode, question, rows, sale, model))
    return _Reply(200, _encode(question, rows, sale, model))


def _why(error: Exception) -> Refusal:
    """Return what a client is told of a request that came to nothing; the model's own words are for the log."""
    if isinstance(error, Waited):
        return Refusal(503, f"{error}, try again", "overloaded", headers=_after(1))
    if isinstance(error, Busy):
        return Refusal(429, f"{error}, try again", "overloaded", headers=_after(1))
    if isinstance(error, Unfetched):
        return Refusal(400, f"input: {error}", "invalid_image", "input")
    if isinstance(error, BadPicture):
        where = f"input[{error.index}]"
        return Refusal(400, f"{where} can't be decoded: {error}", "invalid_image", where)
    if isinstance(error, Unbilled):
        return Refusal(503, "the ledger can't be written; nothing was billed", "server_error")
    _log.error("a request came to nothing", exc_info=error)
    return Refusal(500, "the model failed; nothing was billed", "server_error")


def _encode(question: Question, rows: NDArray[np.float32], sale: Sale, model: str) -> bytes:
    if question.encoding_format == "base64":
        sent: list[Any] = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in rows]
    else:
        sent = rows.tolist()
    answer = {
        "object": "list",
        "model": model,
        "id": sale.request,
        "created": int(time.time()),
        "data": [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(sent)],
        "usage": {"prompt_tokens": sale.count, "total_tokens": sale.count, "micro": sale.micro},
    }
    return to_json(answer)


def _things(question: Question, addresses: Addresses) -> list[str] | list[EncodedImage | Address]:
    """Return texts; or pictures, and where those are that have to be fetched.

    Raises:
        Refusal: too many, or a picture that is neither a data URI nor at an address that is fetched.
    """
    given = [question.input] if isinstance(question.input, str) else question.input
    if question.modality == "text":
        long = next((i for i, text in enumerate(given) if len(text) > TEXT_LENGTH), None)
        if long is not None:
            raise Refusal(400, f"input[{long}]: over {TEXT_LENGTH} characters", "text_too_long", f"input[{long}]")
        return given
    if len(given) > IMAGES:
        raise Refusal(400, f"input: {len(given)} pictures; at most {IMAGES} a request", "too_many_images", "input")
    return [_picture(f"input[{i}]", text, addresses) for i, text in enumerate(given)]


def _picture(where: str, text: str, addresses: Addresses) -> EncodedImage | Address:
    head, comma, rest = text.partition(",")
    try:
        if not text.startswith("data:"):
            return addresses.parse(text)
        if not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
            raise Refusal(400, f"{where}: give pictures as data:image/...;base64,...", "invalid_image", where)
        return EncodedImage(where, base64.b64decode(rest, validate=True))
    except Unfetched as error:
        raise Refusal(400, f"{where}: {error}; give it as data:image/...;base64,...", "invalid_image", where) from None
    except (binascii.Error, ValueError):
        raise Refusal(400, f"{where}: not base64", "invalid_image", where) from None


async def _fetched(
    things: list[str] | list[EncodedImage | Address], addresses: Addresses
) -> list[str] | list[EncodedImage]:
    """Return the things, those pictures fetched that are at an address.

    Raises:
        Unfetched: see there.
    """
    there = {i: thing for i, thing in enumerate(things) if isinstance(thing, Address)}
    if not there:
        return cast("list[str] | list[EncodedImage]", things)
    data = dict(zip(there, await addresses.fetch(list(there.values())), strict=True))
    pictures = cast("list[EncodedImage]", things)
    return [EncodedImage(f"input[{i}]", data[i]) if i in data else thing for i, thing in enumerate(pictures)]


def _count(question: Question) -> int:
    return 1 if isinstance(question.input, str) else len(question.input)


def _after(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, int(np.ceil(seconds))))}


def _failure(
    status: int, message: str, code: str | None = None, param: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    error = {"message": message, "type": kind, "param": param, "code": code}
    return JSONResponse({"error": error}, status, headers)
