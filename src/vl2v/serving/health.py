"""Routes for the server's state."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from vl2v.serving.schemas import failures
from vl2v.serving.service import Service, client_of
from vl2v.web.metrics import TEXT


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
