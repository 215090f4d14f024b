"""The HTTP application: routes, failures and access."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from numpy.typing import NDArray
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Scope

from vl2v import __version__
from vl2v.data.decoding import ImageError
from vl2v.deploy.runtime import Exported
from vl2v.errors import StoreError, StudentError, TeacherError
from vl2v.names import same_name
from vl2v.serving.access import Bodies, FromHere, Local, Locked, failure
from vl2v.serving.decoders import BadImage, Decoders
from vl2v.serving.kserve import kserve_routes
from vl2v.serving.requests import (
    ANY_BODY,
    BODY,
    IMAGES,
    SEVERAL,
    About,
    Classes,
    NewClass,
    OneImage,
    Opinion,
    Predictions,
    body,
    body_of,
    failures,
    files_of,
    locked,
)
from vl2v.serving.service import Network, Service, ServingMetrics, TeacherClient, client_of
from vl2v.serving.traffic_log import TrafficLog
from vl2v.teachers.paid.teacher import BudgetReached
from vl2v.web.batches import Busy, Waited
from vl2v.web.server import TEXT

ADDED = 1000  # classes beside the student's own


def image_routes(service: Service) -> APIRouter:
    """Return the page, `/predict` and `/about`."""
    routes = APIRouter()

    @routes.get("/", response_class=Response, responses={200: {"content": {"text/html": {}}}})
    def start() -> Response:
        """Return the page."""
        return page()

    @routes.post("/predict", response_model=Predictions, responses=failures(*ANY_BODY, 429), openapi_extra=SEVERAL)
    async def predict(request: Request) -> Response:
        """Classify images: files of a multipart form, or base64 in JSON."""
        client = client_of(request)
        service.check_room(client)
        found = await service.predictions(await files_of(request), client)
        return JSONResponse({"model": service.name, "predictions": [asdict(each) for each in found]})

    @routes.get("/about", response_model=About)
    async def about() -> Any:
        """Describe the model, the limits, and whether images are saved."""
        card = {key: service.student.card[key] for key in ("form", "precision", "image_size", "threshold")}
        teacher = await asyncio.to_thread(service.teacher_client.about)
        saves = service.traffic_log.images is not None
        limits = {"images": IMAGES, "bytes": BODY}
        return {"model": service.name, **card, **limits, "saves_images": saves, "teacher": teacher}

    return routes


def teaching_routes(service: Service) -> APIRouter:
    """Return `/classes` and `/teacher`."""
    routes, student, teacher_client = APIRouter(), service.student, service.teacher_client
    most = len(student.classes) + ADDED
    session = asyncio.Lock()  # one query to the teacher at a time

    @routes.get("/classes", response_model=Classes)
    async def classes() -> Any:
        """List the classes."""
        return {"classes": student.classes, "obstacle": teacher_client.obstacle()}

    @routes.post(
        "/classes",
        status_code=201,
        response_model=Classes,
        responses=failures(*ANY_BODY, 402, 409, 502),
        openapi_extra=body(NewClass),
    )
    async def add_class(request: Request) -> Any:
        """Add a class, until the server is stopped."""
        wanted = await body_of(request, NewClass)
        async with session:
            name = student.check_new(wanted.name)
            if len(student.classes) >= most:
                raise StudentError(f"there are {most} classes, as many as the server takes; remove one first")
            if wanted.embedding is None:
                text = await asyncio.to_thread(teacher_client.text, name)
            else:
                text = _unit(wanted.embedding)
            student.add_class(name, text)
        return await classes()

    @routes.delete("/classes/{which:path}", response_model=Classes, responses=failures(403, 404, 409))
    async def remove_class(which: str) -> Any:
        """Take a class away, until the server is stopped."""
        found = (
            [which] if which in student.classes else [n for n in student.classes if same_name(n) == same_name(which)]
        )
        if not found:
            raise HTTPException(404, "no such class")
        student.remove_class(found[0])
        return await classes()

    @routes.post(
        "/teacher",
        response_model=Opinion,
        responses=failures(*ANY_BODY, 402, 409, 502),
        openapi_extra=body(OneImage),
    )
    async def query_teacher(request: Request) -> Any:
        """Return the teacher's prediction for an image; a paid one costs money, once an image."""
        wanted = await body_of(request, OneImage)
        async with session:
            opinion = await asyncio.to_thread(teacher_client.opinion, wanted.file())
            return {"answer": asdict(opinion), "teacher": await asyncio.to_thread(teacher_client.about)}

    return routes


def health_routes(service: Service) -> APIRouter:
    """Return `/health`, `/ready`, what the KServe protocol calls them, and `/metrics`."""
    routes = APIRouter()

    @routes.get("/health")
    @routes.get("/v2/health/live")
    async def health() -> dict[str, bool]:
        """Report that the server is up."""
        return {"live": True}

    @routes.get("/ready", responses=failures(503))
    @routes.get("/v2/health/ready", responses=failures(503))
    async def ready(request: Request) -> dict[str, bool]:
        """Report whether the next image would be taken."""
        service.check_ready(client_of(request))
        return {"ready": True}

    @routes.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    def metrics() -> Response:
        """Return Prometheus metrics; they name no client."""
        service.metrics.watched(service.traffic_log)
        return Response(service.metrics.text(), media_type=TEXT)

    return routes


@cache
def _page() -> tuple[str, dict[str, str]]:
    html = files("vl2v").joinpath("serving", "page.html").read_text(encoding="utf-8")
    hashes = {
        kind: " ".join(f"'sha256-{_digest(text)}'" for text in re.findall(rf"<{kind}>(.*?)</{kind}>", html, re.S))
        for kind in ("script", "style")
    }
    policy = (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; img-src blob: data:; "
        "media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }
    return html, headers


def page() -> Response:
    """Return the page."""
    html, headers = _page()
    return HTMLResponse(html, headers=headers)


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _unit(embedding: Sequence[float]) -> NDArray[np.float32]:
    vector = np.array(embedding, np.float64)
    largest = float(np.abs(vector).max())
    if not np.isfinite(largest) or largest == 0:
        raise HTTPException(422, "embedding: finite numbers, not all zero")
    vector /= largest  # so that no square overflows, and not all of them vanish
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


TOGETHER = 4 * BODY  # bytes of all bodies that are held at once


def create_app(
    student: Exported,
    teacher_client: TeacherClient,
    traffic_log: TrafficLog,
    *,
    name: str = "student",
    key: str = "",
    origins: Sequence[str] = (),
    waiting: int = 128,
) -> FastAPI:
    """Return the application.

    Args:
        student: the export; loaded with one thread.
        teacher_client: for new classes, and the teacher's predictions.
        key: that clients need; "": none, and only requests that were addressed to this machine by name are taken.
        origins: of pages elsewhere that may send requests from a browser.
        waiting: images that may wait for their turn; more are answered with 429.
    """
    metrics = ServingMetrics()
    network = Network(student, waiting=waiting, observe=metrics.batches.observe)
    metrics.queued.set_function(lambda: network.batches.queued)
    decoders = Decoders(student.image_size, student.fit)
    service = Service(name, student, network, decoders, teacher_client, traffic_log, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        size = student.card["image_size"]
        await network.outputs([np.zeros((size, size, 3), np.uint8)])  # the first call is slow
        yield
        network.batches.close()
        await decoders.close()
        traffic_log.close()

    app = FastAPI(title="vl2v serve", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    routers = [routes(service) for routes in (image_routes, teaching_routes, health_routes, kserve_routes)]
    for router in routers:
        app.include_router(router)
    _tell_failures(app, [*app.routes, *(route for router in routers for route in router.routes)])
    _guard(app, metrics, key, origins)
    return app


def _methods(routes: Sequence[BaseRoute], scope: Scope) -> set[str]:
    """Return the methods that an address has."""
    found: set[str] = set()
    for route in routes:
        if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE:
            found |= route.methods or set()
    return found


def _guard(app: FastAPI, metrics: ServingMetrics, key: str, origins: Sequence[str]) -> None:
    """Put around an application what turns requests away; what is put there last sees them first."""
    if key:
        app.add_middleware(Locked, key=key)
        app.openapi_schema = locked(app.openapi())
    else:
        app.add_middleware(Local)
    app.add_middleware(FromHere, origins=origins)
    if origins:
        app.add_middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(Bodies, most=BODY, observe=metrics.answered, together=TOGETHER)


def _tell_failures(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Give every failure one form, which says nothing of the machine."""
    log = logging.getLogger(__name__)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        if error.status_code == 405:  # of routes with the same address only the first has told its methods
            headers["Allow"] = ", ".join(sorted(_methods(routes, request.scope)))
        return failure(error.status_code, str(error.detail), headers=headers)

    @app.exception_handler(ClientDisconnect)
    async def left(request: Request, error: ClientDisconnect) -> Response:
        return failure(400, "the client left in the middle of its body")  # nobody reads it

    @app.exception_handler(Busy)
    async def busy(request: Request, error: Busy) -> Response:
        return failure(429, f"{error}, try again", headers={"Retry-After": "1"})

    @app.exception_handler(Waited)
    async def waited(request: Request, error: Waited) -> Response:
        return failure(429, f"{error}, try again", headers={"Retry-After": "1"})

    @app.exception_handler(BadImage)
    @app.exception_handler(ImageError)
    async def bad_image(request: Request, error: Exception) -> Response:
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
        return failure(502, "the teacher can't be queried; the server's log says why")

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return failure(500, "the server failed; its log says why")
