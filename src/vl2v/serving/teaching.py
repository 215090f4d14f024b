"""Addresses that change the classes, and the one that asks the teacher."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from starlette.exceptions import HTTPException

from vl2v.serving.described import ANY_BODY, Classes, Opinion, body, failures
from vl2v.serving.requests import NewClass, OnePicture, body_of
from vl2v.serving.service import Service


def teaching_routes(service: Service) -> APIRouter:
    """Return `/classes` and `/teacher`."""
    routes, student, tutor = APIRouter(), service.student, service.tutor
    asking = asyncio.Lock()  # one question to the teacher at a time

    @routes.get("/classes", response_model=Classes)
    async def classes() -> Any:
        """List the classes."""
        return {"classes": student.classes, "obstacle": tutor.obstacle()}

    @routes.post(
        "/classes",
        status_code=201,
        response_model=Classes,
        responses=failures(*ANY_BODY, 402, 409, 502),
        openapi_extra=body(NewClass),
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

    @routes.delete("/classes/{which:path}", response_model=Classes, responses=failures(403, 404, 409))
    async def remove_class(which: str) -> Any:
        """Take a class away, until the server is stopped."""
        if which not in student.classes:
            raise HTTPException(404, "no such class")
        student.remove_class(which)
        return await classes()

    @routes.post(
        "/teacher",
        response_model=Opinion,
        responses=failures(*ANY_BODY, 402, 409, 502),
        openapi_extra=body(OnePicture),
    )
    async def ask_teacher(request: Request) -> Any:
        """Say what the teacher says of a picture; a rented one costs money, once a picture."""
        asked = await body_of(request, OnePicture)
        async with asking:
            opinion = await asyncio.to_thread(tutor.opinion, asked.file())
            return {"answer": asdict(opinion), "teacher": await asyncio.to_thread(tutor.about)}

    return routes


def _unit(embedding: Sequence[float]) -> NDArray[np.float32]:
    vector = np.array(embedding, np.float64)
    norm = float(np.linalg.norm(vector))
    if not np.isfinite(norm) or norm == 0:
        raise HTTPException(422, "embedding: finite numbers, not all zero")
    return np.asarray(vector / norm, np.float32)
