"""Anthropic's `/v1/messages`, as JSON and as server-sent events, and the count of a prompt's tokens."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.dialect import refuse_headers
from server.message_events import MessageEvents
from server.messages import as_chat
from server.routes.common import CurrentCaller, CurrentServices, limit_headers_on_errors, read, stream
from server.streaming import WholeAnswer
from server.wire.answers import answers
from server.wire.message_answer import MessageBody, TokenCountBody, message, token_count
from server.wire.message_errors import MessageErrorEnvelope
from server.wire.messages import CountTokensRequest, MessagesRequest
from server.wire.takes import takes

router = APIRouter()


@router.post("/v1/messages")
@takes(MessagesRequest)
@answers(MessageBody, streams=True, error=MessageErrorEnvelope)
async def create(request: Request, caller: CurrentCaller, services: CurrentServices) -> Response:
    async with limit_headers_on_errors(caller.principal, services):
        refuse_headers(request)
        body = await read(request, MessagesRequest, services)
        chat = as_chat(body, services.router.resolve(body.model, caller.principal))
        generation = await services.pipeline.chat(caller, chat, "messages", "msg")
    if body.stream:
        return stream(generation, MessageEvents(generation, hides_thinking=body.hides_thinking), services)
    return WholeAnswer(generation, partial(message, hides_thinking=body.hides_thinking))


@router.post("/v1/messages/count_tokens")
@takes(CountTokensRequest)
@answers(TokenCountBody, error=MessageErrorEnvelope)
async def count_tokens(request: Request, caller: CurrentCaller, services: CurrentServices) -> Response:
    """No model runs and nothing is charged."""
    async with limit_headers_on_errors(caller.principal, services):
        refuse_headers(request)
        body = await read(request, CountTokensRequest, services)
        chat = as_chat(body, services.router.resolve(body.model, caller.principal))
        count = await services.pipeline.count_tokens(caller, chat, "messages")
    headers = await services.entitlement.headers(caller.principal)
    return Response(token_count(count), headers=headers, media_type="application/json")
