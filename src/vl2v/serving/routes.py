"""Routes: the page, predictions and the model; the classes and the teacher; the server's state."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from numpy.typing import NDArray
from starlette.exceptions import HTTPException

from vl2v.errors import StudentError
from vl2v.names import same_name
from vl2v.serving.requests import BODY, IMAGES, NewClass, OneImage, body_of, files_of
from vl2v.serving.schemas import ANY_BODY, SEVERAL, About, Classes, Opinion, Predictions, body, failures
from vl2v.serving.service import Service, client_of
from vl2v.web.metrics import TEXT

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
