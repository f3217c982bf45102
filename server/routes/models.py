"""`/v1/models`: every id that the caller's key can ask for, as OpenAI's clients read it or as Anthropic's do."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.auth import Principal
from server.dialect import reads_messages, refuse_headers
from server.registry import Deployment
from server.routes.common import CurrentPrincipal, CurrentServices, limit_headers_on_errors
from server.services import Services
from server.wire.answers import answers
from server.wire.body import read_query
from server.wire.message_models import ModelInfo, ModelPage, ModelsQuery, model_info, model_page
from server.wire.models import Model, ModelList, model_list
from server.wire.takes import takes

router = APIRouter()


@router.get("/v1/models")
@takes(ModelsQuery)
@answers(ModelList, ModelPage)
async def list_models(request: Request, principal: CurrentPrincipal, services: CurrentServices) -> Response:
    visible = services.router.visible(principal)
    if reads_messages(request.scope):
        refuse_headers(request)
        page = model_page([_info(*named) for named in visible], read_query(request, ModelsQuery))
        return await _json(page, principal, services)
    answer = model_list(Model(id=name, created=deployment.created) for name, deployment in visible)
    return await _json(answer, principal, services)


@router.get("/v1/models/{model:path}")
@answers(Model, ModelInfo)
async def retrieve_model(
    model: str, request: Request, principal: CurrentPrincipal, services: CurrentServices
) -> Response:
    """Model names may hold slashes."""
    async with limit_headers_on_errors(principal, services):
        deployment = services.router.resolve(model, principal)
    if reads_messages(request.scope):
        refuse_headers(request)
        return await _json(_info(model, deployment), principal, services)
    return await _json(Model(id=model, created=deployment.created), principal, services)


def _info(name: str, deployment: Deployment) -> ModelInfo:
    return model_info(name, deployment.id, deployment.created, deployment.limits.context)


async def _json(answer: msgspec.Struct, principal: Principal, services: Services) -> Response:
    headers = await services.entitlement.headers(principal)
    return Response(msgspec.json.encode(answer), headers=headers, media_type="application/json")
