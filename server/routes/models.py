"""`/v1/models`: every id that the caller's key can ask for."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from server.auth import Principal
from server.routes.common import CurrentPrincipal, CurrentServices, limit_headers_on_errors
from server.services import Services
from server.wire.models import Model, model_list

router = APIRouter()


@router.get("/v1/models")
async def list_models(principal: CurrentPrincipal, services: CurrentServices) -> Response:
    visible = services.router.visible(principal)
    answer = model_list(Model(id=name, created=deployment.created) for name, deployment in visible)
    return await _json(answer, principal, services)


@router.get("/v1/models/{model:path}")
async def retrieve_model(model: str, principal: CurrentPrincipal, services: CurrentServices) -> Response:
    """Model names may hold slashes."""
    async with limit_headers_on_errors(principal, services):
        answer = Model(id=model, created=services.router.resolve(model, principal).created)
    return await _json(answer, principal, services)


async def _json(answer: msgspec.Struct, principal: Principal, services: Services) -> Response:
    headers = await services.entitlement.headers(principal)
    return Response(msgspec.json.encode(answer), headers=headers, media_type="application/json")
