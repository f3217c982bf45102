"""Liveness, readiness, metrics."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.responses import JSONResponse, Response

from server.routes.common import CurrentServices
from server.wire.answers import answers

PROBES = ["GET", "HEAD"]  # load balancers use either

router = APIRouter()


class Status(msgspec.Struct, frozen=True):
    status: str


@router.api_route("/healthz", methods=PROBES)
@router.api_route("/health", methods=PROBES)
@answers(Status)
async def live() -> JSONResponse:
    return JSONResponse({"status": "ok"})


@router.api_route("/readyz", methods=PROBES)
@answers(Status, statuses=(200, 503))
async def ready(services: CurrentServices) -> JSONResponse:
    """503 while a model's workers are all away, and while the server drains; "degraded" while some are."""
    status = services.status
    return JSONResponse({"status": status}, 200 if status in ("ready", "degraded") else 503)


@router.get("/metrics")
@answers(media="text/plain")
async def metrics(services: CurrentServices) -> Response:
    """Behind an admin key: `auth.authenticate_route`."""
    return Response(services.metrics.render(), media_type=CONTENT_TYPE_PLAIN_0_0_4)
