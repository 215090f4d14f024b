"""The KServe protocol, in JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from vl2v import __version__
from vl2v.prediction import Prediction
from vl2v.serving.described import ANY_BODY, body, failures
from vl2v.serving.requests import Inference, body_of
from vl2v.serving.service import Service


def kserve_routes(service: Service) -> APIRouter:
    """Return what is below `/v2`, but for the server's health."""
    routes = APIRouter()

    @routes.get("/v2")
    async def server() -> dict[str, Any]:
        """Tell what speaks the KServe protocol here."""
        return {"name": "vl2v", "version": __version__, "extensions": []}

    @routes.get("/v2/models/{model}", responses=failures(404))
    async def model_metadata(model: str) -> dict[str, Any]:
        """Describe the model in the terms of the KServe protocol."""
        _same(model, service.name)
        size, count = service.student.card["image_size"], len(service.student.classes)
        return {
            "name": service.name,
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
                    "parameters": {"classes": service.student.classes},
                },
            ],
        }

    @routes.post(
        "/v2/models/{model}/infer",
        responses=failures(*ANY_BODY, 404, 429, 503),
        openapi_extra=body(Inference),
    )
    async def infer(model: str, request: Request) -> Response:
        """Say what is in pictures, in the terms of the KServe protocol."""
        _same(model, service.name)
        service.look()
        asked = await body_of(request, Inference)
        answers = await service.predictions(asked.things(service.student.card["image_size"]))
        wanted = None if asked.outputs is None else {output.name for output in asked.outputs}
        outputs = [output for output in _outputs(answers) if wanted is None or output["name"] in wanted]
        reply = {"model_name": service.name, "outputs": outputs}
        return JSONResponse(reply if asked.id is None else {**reply, "id": asked.id})

    @routes.get("/v2/models/{model}/ready", responses=failures(404, 503))
    async def model_ready(model: str) -> dict[str, bool]:
        """Tell whether the next picture would be taken, in the terms of the KServe protocol."""
        _same(model, service.name)
        service.check_ready()
        return {"ready": True}

    return routes


def _same(given: str, name: str) -> None:
    if given != name:
        raise HTTPException(404, f"no such model; there is {name!r}")


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
