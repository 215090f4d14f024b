"""Routes: the page, predictions and the model; and the server's state."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

from vl2v.serving.requests import BODY, IMAGES, files_of
from vl2v.serving.schemas import ANY_BODY, SEVERAL, About, Predictions, failures
from vl2v.serving.service import Service, client_of
from vl2v.web.metrics import TEXT


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
        """Tell what found here."""
        card = {key: service.student.card[key] for key in ("form", "precision", "image_size", "threshold")}
        teacher = await asyncio.to_thread(service.teacher_client.about)
        return {"model": service.name, **card, "images": IMAGES, "bytes": BODY, "teacher": teacher}

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
