"""`/v1/chat/completions`: JSON and server-sent events by POST, frames over a WebSocket."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from starlette.websockets import WebSocket

from server.chat_socket import ChatSocket
from server.routes.common import CurrentCaller, CurrentServices, limit_headers_on_errors, read, respond
from server.wire.answers import answers
from server.wire.chat import ChatCompletionFrame, ChatCompletionRequest
from server.wire.chat_answer import ChatCompletionBody, chat_completion, chunk_encoder
from server.wire.takes import takes

router = APIRouter()


@router.post("/v1/chat/completions")
@takes(ChatCompletionRequest)
@answers(ChatCompletionBody, streams=True)
async def create(request: Request, caller: CurrentCaller, services: CurrentServices) -> Response:
    async with limit_headers_on_errors(caller.principal, services):
        body = await read(request, ChatCompletionRequest, services)
        generation = await services.pipeline.chat(caller, body)
    is_legacy = generation.job.is_legacy
    render = partial(chat_completion, is_legacy=is_legacy)
    return respond(generation, render, chunk_encoder(is_legacy), services)


@router.websocket("/v1/chat/completions")
@takes(ChatCompletionFrame)
async def converse(websocket: WebSocket, services: CurrentServices) -> None:
    await ChatSocket(websocket, services).serve()
