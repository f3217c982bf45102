"""Liveness, readiness, metrics."""

from __future__ import annotations

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.responses import JSONResponse, Response

from server.routes.common import CurrentServices

router = APIRouter()


@router.get("/healthz")
@router.get("/health")
async def live() -> JSONResponse:
    return JSONResponse({"status": "ok"})


@router.get("/readyz")
async def ready(services: CurrentServices) -> JSONResponse:
    """503 while a model's workers are all away, and while the server drains."""
    status = services.status
    return JSONResponse({"status": status}, 200 if status == "ready" else 503)


@router.get("/metrics")
async def metrics(services: CurrentServices) -> Response:
    """Behind an admin key: `auth.authenticate_route`."""
    return Response(services.metrics.render(), media_type=CONTENT_TYPE_PLAIN_0_0_4)
