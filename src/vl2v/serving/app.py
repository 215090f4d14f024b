"""The HTTP application: routes, failures and access."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import numpy as np
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Scope

from vl2v import __version__
from vl2v.data.decoding import ImageError
from vl2v.deploy.runtime import Exported
from vl2v.errors import StoreError, StudentError, TeacherError
from vl2v.serving.access import Bodies, FromHere, Local, Locked, failure
from vl2v.serving.decoders import BadImage, Decoders
from vl2v.serving.kserve import kserve_routes
from vl2v.serving.requests import BODY
from vl2v.serving.routes import health_routes, image_routes, teaching_routes
from vl2v.serving.schemas import locked
from vl2v.serving.service import Network, Service, ServingMetrics
from vl2v.serving.teacher_client import TeacherClient
from vl2v.serving.traffic_log import TrafficLog
from vl2v.teachers.paid.teacher import BudgetReached
from vl2v.web.batches import Busy, Waited

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
