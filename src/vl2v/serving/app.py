"""The HTTP side: predictions, classes, the teacher's opinion, the KServe protocol, metrics and the page."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from prometheus_client import Counter, Gauge
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from vl2v import __version__
from vl2v.data.decoding import PictureError
from vl2v.drift import WINDOW
from vl2v.errors import StoreError, StudentError, TeacherError
from vl2v.prediction import UNKNOWN, Prediction
from vl2v.runtime import Exported
from vl2v.serving.answers import BadPicture, Network, Thing
from vl2v.serving.guard import OPEN, Locked, failure
from vl2v.serving.page import page
from vl2v.serving.requests import BODY, PICTURES, Inference, NewClass, OnePicture, Pictures, body_of, files_of
from vl2v.serving.tutor import Tutor
from vl2v.serving.watch import Watch
from vl2v.teachers.rented import BudgetReached
from vl2v.web.batches import Busy, Waited
from vl2v.web.bodies import Bodies
from vl2v.web.metrics import Metrics

_BODY = (400, 408, 413, 415, 422)  # what any body can be answered with
LOCAL = ["127.0.0.1", "localhost", "::1"]
STATUSES = {
    400: "a picture can't be decoded, or the body isn't what its Content-Type says",
    401: "no key, or a wrong one",
    402: "the budget for the teacher is used up",
    404: "no such thing",
    408: "the body came too slowly",
    409: "not with this student, or not with what is known here",
    413: "the body is too large",
    415: "another Content-Type is needed",
    422: "the body isn't of the form that is described here",
    429: "too much is waiting; Retry-After tells for how long",
    502: "the teacher can't be asked; the server's log tells why",
    503: "waited too long",
}


class Failure(BaseModel):
    """What was wrong."""

    error: str


class Answer(BaseModel):
    """What is said of a picture; `label` is the best class, or "unknown"."""

    label: str
    best: str
    probability: float
    probabilities: dict[str, float]


class Answers(BaseModel):
    """One answer a picture, in order."""

    model: str
    predictions: list[Answer]


class Classes(BaseModel):
    """All classes; `obstacle` says why none can be added by its name alone, if so."""

    classes: list[str]
    obstacle: str | None


class TeacherFacts(BaseModel):
    """The teacher that can be asked, and what it was paid."""

    name: str
    paid: bool
    bill: str | None


class About(BaseModel):
    """What answers here."""

    model: str
    form: Literal["open", "closed"]
    precision: str
    image_size: int
    threshold: float
    pictures: int
    bytes: int
    teacher: TeacherFacts | None


class Opinion(BaseModel):
    """What the teacher says of a picture, zero-shot."""

    answer: Answer
    teacher: TeacherFacts


def _failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"description": STATUSES[status], "model": Failure} for status in statuses}


def _body(model: type[BaseModel]) -> dict[str, Any]:
    """Describe a body that is read by hand."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _schema(model)}}}}


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return a model's schema without references: it stands alone."""
    schema = model.model_json_schema()
    parts = schema.pop("$defs", {})

    def whole(value: Any) -> Any:
        if isinstance(value, dict):
            reference = value.get("$ref")
            return whole(parts[reference.rpartition("/")[2]]) if reference else {k: whole(v) for k, v in value.items()}
        return [whole(each) for each in value] if isinstance(value, list) else value

    found: dict[str, Any] = whole(schema)
    return found


_FILES = {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "string", "format": "binary"}}}
_PICTURES: dict[str, Any] = _body(Pictures)
_PICTURES["requestBody"]["content"]["multipart/form-data"] = {"schema": _FILES}


def create_app(
    student: Exported,
    tutor: Tutor,
    watch: Watch,
    *,
    name: str = "student",
    key: str = "",
    origins: Sequence[str] = (),
    waiting: int = 128,
) -> FastAPI:
    """Return the application.

    Args:
        student: who answers; loaded with one thread.
        tutor: for new classes, and for what the teacher says.
        watch: is told the network's outputs.
        name: of the model.
        key: that clients need; "": none, and only requests that were addressed to this machine by name are taken.
        origins: of pages elsewhere that may ask from a browser.
        waiting: pictures that may wait for their turn; more are answered with 429.
    """
    metrics = _Metrics()
    network = Network(student, waiting=waiting, observe=metrics.batches.observe)
    metrics.queued.set_function(lambda: network.batches.queued)
    asking = asyncio.Lock()  # one question to the teacher at a time

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        size = student.card["image_size"]
        await network.outputs([np.zeros((size, size, 3), np.uint8)])  # the first call is slow
        yield
        network.batches.close()
        watch.close()

    async def predictions(things: Sequence[Thing]) -> list[Prediction]:
        rows = await network.outputs(things)
        answers = student.predictions(rows)
        watch.add(rows, answers)
        metrics.count(answers)
        return answers

    def look() -> None:
        """Turn a request away before its body is read, if it will be turned away anyhow."""
        if network.batches.full():
            raise Busy("too many pictures are waiting")

    app = FastAPI(title="vl2v serve", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)

    @app.get("/", response_class=Response, responses={200: {"content": {"text/html": {}}}})
    def start() -> Response:
        """Return the page."""
        return page()

    @app.post(
        "/predict",
        response_model=Answers,
        responses=_failures(*_BODY, 429, 503),
        openapi_extra=_PICTURES,
    )
    async def predict(request: Request) -> Response:
        """Say what is in pictures: files of a multipart form, or base64 in JSON."""
        look()
        files = await files_of(request)
        return JSONResponse({"model": name, "predictions": [asdict(each) for each in await predictions(files)]})

    @app.get("/about", response_model=About)
    async def about() -> Any:
        """Tell what answers here."""
        card = {key: student.card[key] for key in ("form", "precision", "image_size", "threshold")}
        teacher = await asyncio.to_thread(tutor.about)
        return {"model": name, **card, "pictures": PICTURES, "bytes": BODY, "teacher": teacher}

    @app.get("/classes", response_model=Classes)
    async def classes() -> Any:
        """List the classes."""
        return {"classes": student.classes, "obstacle": tutor.obstacle()}

    @app.post(
        "/classes",
        status_code=201,
        response_model=Classes,
        responses=_failures(*_BODY, 402, 409, 502),
        openapi_extra=_body(NewClass),
    )
    async def add_class(request: Request) -> Any:
        """Add a class, until the server is stopped."""
        asked = await body_of(request, NewClass)
        async with asking:
            student.check_new(asked.name)
            if asked.embedding is None:
                text = await asyncio.to_thread(tutor.text, asked.name)
            else:
                text = _unit(asked.embedding)
            student.add_class(asked.name, text)
        return await classes()

    @app.delete("/classes/{which:path}", response_model=Classes, responses=_failures(404, 409))
    async def remove_class(which: str) -> Any:
        """Take a class away, until the server is stopped."""
        if which not in student.classes:
            raise HTTPException(404, "no such class")
        student.remove_class(which)
        return await classes()

    @app.post(
        "/teacher",
        response_model=Opinion,
        responses=_failures(*_BODY, 402, 409, 502),
        openapi_extra=_body(OnePicture),
    )
    async def ask_teacher(request: Request) -> Any:
        """Say what the teacher says of a picture; a rented one costs money, once a picture."""
        asked = await body_of(request, OnePicture)
        async with asking:
            opinion = await asyncio.to_thread(tutor.opinion, asked.file())
            return {"answer": asdict(opinion), "teacher": await asyncio.to_thread(tutor.about)}

    @app.get("/health")
    @app.get("/v2/health/live")
    async def health() -> dict[str, bool]:
        """Tell that the server is there."""
        return {"live": True}

    @app.get("/ready", responses=_failures(503))
    @app.get("/v2/health/ready", responses=_failures(503))
    async def ready() -> dict[str, bool]:
        """Tell whether the next picture would be taken."""
        if network.batches.full():
            raise HTTPException(503, "too many pictures are waiting", {"Retry-After": "1"})
        return {"ready": True}

    @app.get("/v2/models/{model}/ready", responses=_failures(404, 503))
    async def model_ready(model: str) -> dict[str, bool]:
        """Tell whether the next picture would be taken, in the terms of the KServe protocol."""
        _same(model, name)
        return await ready()

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    def metrics_page() -> Response:
        """Return Prometheus metrics; they name no client."""
        metrics.watched(watch)
        return metrics.page()

    @app.get("/v2")
    async def server() -> dict[str, Any]:
        """Tell what speaks the KServe protocol here."""
        return {"name": "vl2v", "version": __version__, "extensions": []}

    @app.get("/v2/models/{model}", responses=_failures(404))
    async def model_metadata(model: str) -> dict[str, Any]:
        """Describe the model in the terms of the KServe protocol."""
        _same(model, name)
        size, count = student.card["image_size"], len(student.classes)
        return {
            "name": name,
            "versions": [],
            "platform": "onnxruntime_onnx",
            "inputs": [
                {"name": "image", "datatype": "BYTES", "shape": [-1], "parameters": {"content_type": "base64"}},
                {"name": "pixels", "datatype": "UINT8", "shape": [-1, size, size, 3]},
            ],
            "outputs": [
                {"name": "label", "datatype": "BYTES", "shape": [-1]},
                {"name": "best", "datatype": "BYTES", "shape": [-1]},
                {
                    "name": "probabilities",
                    "datatype": "FP32",
                    "shape": [-1, count],
                    "parameters": {"classes": student.classes},
                },
            ],
        }

    @app.post(
        "/v2/models/{model}/infer",
        responses=_failures(*_BODY, 404, 429, 503),
        openapi_extra=_body(Inference),
    )
    async def infer(model: str, request: Request) -> Response:
        """Say what is in pictures, in the terms of the KServe protocol."""
        _same(model, name)
        look()
        asked = await body_of(request, Inference)
        answers = await predictions(asked.things(student.card["image_size"]))
        wanted = None if asked.outputs is None else {output.name for output in asked.outputs}
        outputs = [output for output in _outputs(answers) if wanted is None or output["name"] in wanted]
        reply = {"model_name": name, "outputs": outputs}
        return JSONResponse(reply if asked.id is None else {**reply, "id": asked.id})

    _tell_failures(app)
    if key:
        app.add_middleware(Locked, key=key)
    else:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOCAL, www_redirect=False)
    if origins:
        app.add_middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(Bodies, most=BODY, refusal=failure, observe=metrics.answered)
    if key:
        app.openapi_schema = _locked(app.openapi())
    return app


class _Metrics(Metrics):
    def __init__(self) -> None:
        super().__init__()
        options: dict[str, Any] = {"registry": self.registry}
        self.pictures = Counter("vl2v_pictures", "pictures that were answered", **options)
        self.unknown = Counter("vl2v_unknown", 'pictures with the answer "unknown"', **options)
        latest = f"of the latest {WINDOW} pictures"
        self.distance = Gauge(
            "vl2v_drift_distance", f"{latest}: from the training domains; 1: as these from one another", **options
        )
        self.share = Gauge("vl2v_drift_unknown_share", f'{latest}: with the answer "unknown"', **options)
        self.expected = Gauge("vl2v_drift_unknown_expected", "that share on validation pictures", **options)

    def count(self, answers: Sequence[Prediction]) -> None:
        """Count answers."""
        self.pictures.inc(len(answers))
        self.unknown.inc(sum(answer.label == UNKNOWN for answer in answers))

    def watched(self, watch: Watch) -> None:
        """Set the gauges of drift; what can't be told is NaN."""
        found = watch.drift()
        nan = float("nan")
        self.distance.set(nan if found is None or found.distance is None else found.distance)
        self.share.set(nan if found is None else found.unknown)
        self.expected.set(nan if found is None else found.expected)


def _tell_failures(app: FastAPI) -> None:
    """See to it that every failure is told in one form, and nothing of the machine with it."""
    log = logging.getLogger(__name__)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return failure(error.status_code, str(error.detail), headers=dict(error.headers or {}))

    @app.exception_handler(Busy)
    async def busy(request: Request, error: Busy) -> Response:
        return failure(429, f"{error}, try again", headers={"Retry-After": "1"})

    @app.exception_handler(Waited)
    async def waited(request: Request, error: Waited) -> Response:
        return failure(503, f"{error}, try again", headers={"Retry-After": "1"})

    @app.exception_handler(BadPicture)
    @app.exception_handler(PictureError)
    async def bad_picture(request: Request, error: Exception) -> Response:
        return failure(400, str(error))

    @app.exception_handler(StudentError)
    async def impossible(request: Request, error: StudentError) -> Response:
        return failure(409, str(error))

    @app.exception_handler(BudgetReached)
    async def spent(request: Request, error: BudgetReached) -> Response:
        return failure(402, "the budget for the teacher is used up")

    @app.exception_handler(TeacherError)
    @app.exception_handler(StoreError)
    async def no_teacher(request: Request, error: Exception) -> Response:
        log.warning("%s", error)
        return failure(502, "the teacher can't be asked; the server's log tells why")

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return failure(500, "the server failed; its log tells why")


def _same(given: str, name: str) -> None:
    if given != name:
        raise HTTPException(404, f"no such model; there is {name!r}")


def _unit(embedding: Sequence[float]) -> NDArray[np.float32]:
    vector = np.array(embedding, np.float64)
    norm = float(np.linalg.norm(vector))
    if not np.isfinite(norm) or norm == 0:
        raise HTTPException(422, "embedding: finite numbers, not all zero")
    return np.asarray(vector / norm, np.float32)


def _outputs(answers: Sequence[Prediction]) -> list[dict[str, Any]]:
    rows = [list(answer.probabilities.values()) for answer in answers]
    words = {"label": [answer.label for answer in answers], "best": [answer.best for answer in answers]}
    return [
        *({"name": each, "datatype": "BYTES", "shape": [len(data)], "data": data} for each, data in words.items()),
        {
            "name": "probabilities",
            "datatype": "FP32",
            "shape": [len(rows), len(rows[0])],
            "data": [probability for row in rows for probability in row],
        },
    ]


def _locked(schema: dict[str, Any]) -> dict[str, Any]:
    """Return an OpenAPI document that tells of the key."""
    schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in schema["paths"].items():
        for operation in operations.values() if path not in OPEN else ():
            operation["security"] = [{"key": []}]
            operation["responses"]["401"] = {"description": STATUSES[401]}
    return schema
