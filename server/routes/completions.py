"""`/v1/completions`: OpenAI's legacy endpoint, one choice a prompt."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.routes.common import CurrentCaller, CurrentServices, limit_headers_on_errors, read, respond
from server.wire.answers import answers
from server.wire.completions import CompletionBody, CompletionChunkEncoder, CompletionRequest, completion
from server.wire.takes import takes

router = APIRouter()


@router.post("/v1/completions")
@takes(CompletionRequest)
@answers(CompletionBody, streams=True)
async def create(request: Request, caller: CurrentCaller, services: CurrentServices) -> Response:
    async with limit_headers_on_errors(caller.principal, services):
        body = await read(request, CompletionRequest, services)
        generation = await services.pipeline.completion(caller, body)
    return respond(generation, completion, CompletionChunkEncoder, services)
