"""Routes that change the classes, and the one that queries the teacher."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from starlette.exceptions import HTTPException

from vl2v.errors import StudentError
from vl2v.names import same_name
from vl2v.serving.requests import NewClass, OneImage, body_of
from vl2v.serving.schemas import ANY_BODY, Classes, Opinion, body, failures
from vl2v.serving.service import Service

ADDED = 1000  # classes beside the student's own


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


def _unit(embedding: Sequence[float]) -> NDArray[np.float32]:
    vector = np.array(embedding, np.float64)
    largest = float(np.abs(vector).max())
    if not np.isfinite(largest) or largest == 0:
        raise HTTPException(422, "embedding: finite numbers, not all zero")
    vector /= largest  # so that no square overflows, and not all of them vanish
    return np.asarray(vector / np.linalg.norm(vector), np.float32)
