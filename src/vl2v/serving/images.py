"""Routes for people and programs with images: the page, the predictions, and the model."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from vl2v.serving.page import page
from vl2v.serving.requests import BODY, IMAGES, files_of
from vl2v.serving.schemas import ANY_BODY, SEVERAL, About, Predictions, failures
from vl2v.serving.service import Service, client_of


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
