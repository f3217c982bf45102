"""`/v1/responses`: made whole, as a stream, or in the background; and what is kept of them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from starlette.websockets import WebSocket

from server.errors import InvalidRequest
from server.job import Caller
from server.reachable import database_reached
from server.responses.background import Run
from server.responses.following import FollowedResponse, RunSource, Source, StoredSource
from server.responses.service import Prepared, check_included
from server.responses.socket import ResponsesSocket
from server.responses.telling import ResponseEvents
from server.responses.whole import WholeResponse
from server.routes.common import CurrentCaller, CurrentServices, limit_headers_on_errors, patience_of, read, stream
from server.services import Services
from server.store.responses import StoredResponse
from server.wire.answers import answers
from server.wire.body import read_query
from server.wire.common import encode
from server.wire.response_body import LIVE, CompactedResponse, Deleted, InputTokens, ItemList, ResponseBody
from server.wire.responses import (
    CompactRequest,
    InputItemsQuery,
    InputTokensRequest,
    ResponseFrame,
    ResponsesRequest,
    RetrieveQuery,
)
from server.wire.takes import takes

router = APIRouter()

CANCEL_PATIENCE = 5.0  # seconds until a cancelled response is told of as it is


@router.post("/v1/responses")
@takes(ResponsesRequest)
@answers(ResponseBody, streams=True)
async def create(request: Request, caller: CurrentCaller, services: CurrentServices) -> Response:
    async with limit_headers_on_errors(caller.principal, services):
        body = await read(request, ResponsesRequest, services)
        asking = replace(caller, read_timeout=None) if body.background else caller  # that one does not wait
        prepared = await services.responses.prepare(asking, body)
    if body.background:
        return await _background(prepared, body, caller, services)
    if body.stream:
        events = ResponseEvents(prepared.telling, obfuscate=body.obfuscates)
        return stream(prepared.generation, events, services)
    return WholeResponse(prepared)


async def _background(prepared: Prepared, body: ResponsesRequest, caller: Caller, services: Services) -> Response:
    run = await services.background.start(prepared)
    if body.stream:
        headers = prepared.generation.headers
        return _followed(RunSource(run, -1), -1, caller, services, obfuscate=body.obfuscates, headers=headers)
    return _json(encode(run.opened), prepared.generation.headers)


def _followed(
    source: Source,
    after: int,
    caller: Caller,
    services: Services,
    *,
    obfuscate: bool,
    headers: Mapping[str, str] | None = None,
) -> Response:
    keep_alive, write_timeout = patience_of(caller, services)
    return FollowedResponse(
        source, after, headers or {}, obfuscate=obfuscate, keep_alive=keep_alive, write_timeout=write_timeout
    )


@router.post("/v1/responses/input_tokens")
@takes(InputTokensRequest)
@answers(InputTokens)
async def count(request: Request, caller: CurrentCaller, services: CurrentServices) -> Response:
    """How long the prompt is that would be made of it. No model runs, and nothing is charged."""
    async with limit_headers_on_errors(caller.principal, services):
        body = await read(request, InputTokensRequest, services)
        tokens = await services.responses.count_tokens(caller, body)
    return _json(encode(InputTokens(tokens)), await services.entitlement.headers(caller.principal))


@router.post("/v1/responses/compact")
@takes(CompactRequest)
@answers(CompactedResponse)
async def compact(request: Request, caller: CurrentCaller, services: CurrentServices) -> Response:
    async with limit_headers_on_errors(caller.principal, services):
        body = await read(request, CompactRequest, services)
        return await services.responses.compact(caller, body)


@router.get("/v1/responses/{response_id}")
@takes(RetrieveQuery)
@answers(ResponseBody, streams=True)
async def retrieve(response_id: str, request: Request, caller: CurrentCaller, services: CurrentServices) -> Response:
    async with limit_headers_on_errors(caller.principal, services):
        query = read_query(request, RetrieveQuery)
        stored = await services.responses.stored(caller, response_id)
        check_included(stored, query.include)
    if not query.stream:
        return _json(stored.body.encode())
    after = -1 if query.starting_after is None else query.starting_after
    source = await _source(stored, after, services)
    return _followed(source, after, caller, services, obfuscate=query.include_obfuscation)


async def _source(stored: StoredResponse, after: int, services: Services) -> Source:
    if (run := services.background.find(stored.account_id, stored.id)) is not None:
        return RunSource(run, after)
    store = services.store.responses
    with database_reached():
        if stored.status not in LIVE and not await store.has_events(stored.id):
            message = "This response was made whole: only one that was streamed, or in the background, has a stream."
            raise InvalidRequest(message, param="stream")
    return StoredSource(store, stored, after, lambda: services.draining)


@router.delete("/v1/responses/{response_id}")
@answers(Deleted)
async def delete(response_id: str, caller: CurrentCaller, services: CurrentServices) -> Response:
    async with limit_headers_on_errors(caller.principal, services):
        await services.responses.delete(caller, response_id)
    if (run := services.background.find(caller.principal.account_id, response_id)) is not None:
        run.stop(is_cancelled=True)
    return _json(encode(Deleted(response_id)))


@router.post("/v1/responses/{response_id}/cancel")
@takes(None)
@answers(ResponseBody)
async def cancel(response_id: str, caller: CurrentCaller, services: CurrentServices) -> Response:
    """At the gateway that runs it at once, at another within moments. One that has ended is what it is."""
    async with limit_headers_on_errors(caller.principal, services):
        stored = await services.responses.stored(caller, response_id)
        if not stored.is_background:
            raise InvalidRequest("Only responses that run in the background can be cancelled.", param="response_id")
        if stored.status in LIVE:
            await _stop(services.background.find(stored.account_id, stored.id), caller, response_id, services)
            stored = await services.responses.stored(caller, response_id)
    return _json(stored.body.encode())


async def _stop(run: Run | None, caller: Caller, response_id: str, services: Services) -> None:
    if run is not None:
        run.stop(is_cancelled=True)
        await run.ended()
        return
    with database_reached():
        await services.store.responses.request_cancel(caller.principal.account_id, response_id)
    deadline = asyncio.get_running_loop().time() + CANCEL_PATIENCE
    while asyncio.get_running_loop().time() < deadline:
        if (await services.responses.stored(caller, response_id)).status not in LIVE:
            return
        await asyncio.sleep(0.1)


@router.get("/v1/responses/{response_id}/input_items")
@takes(InputItemsQuery)
@answers(ItemList)
async def input_items(response_id: str, request: Request, caller: CurrentCaller, services: CurrentServices) -> Response:
    async with limit_headers_on_errors(caller.principal, services):
        query = read_query(request, InputItemsQuery)
        stored = await services.responses.stored(caller, response_id)
        with database_reached():
            items = await services.store.responses.inputs(
                stored.account_id, stored.id, after=query.after, limit=query.limit + 1, descending=query.order == "desc"
            )
        if items is None:
            raise InvalidRequest("There is no such item in this response's input.", param="after")
    page = items[: query.limit]
    first, last = (page[0]["id"], page[-1]["id"]) if page else ("", "")
    return _json(encode(ItemList(page, first, last, len(items) > query.limit)))


@router.websocket("/v1/responses")
@takes(ResponseFrame)
async def converse(websocket: WebSocket, services: CurrentServices) -> None:
    await ResponsesSocket(websocket, services).serve()


def _json(body: bytes, headers: dict[str, str] | None = None) -> Response:
    return Response(body, headers=headers, media_type="application/json")
