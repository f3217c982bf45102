"""`/v1/models`: every id that the caller's key can ask for."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from server.routes.common import CurrentPrincipal, CurrentServices
from server.wire.models import Model, model_list

router = APIRouter()


@router.get("/v1/models")
async def list_models(principal: CurrentPrincipal, services: CurrentServices) -> Response:
    return _json(model_list(Model(id=name, created=d.created) for name, d in services.router.visible(principal)))


@router.get("/v1/models/{model:path}")
async def retrieve_model(model: str, principal: CurrentPrincipal, services: CurrentServices) -> Response:
    """Model names may hold slashes."""
    return _json(Model(id=model, created=services.router.resolve(model, principal).created))


def _json(answer: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(answer), media_type="application/json")
