"""The composition root: which routes there are, and what stands around them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp
from starlette.websockets import WebSocket

from server.access import authenticate_route
from server.cache.wish import HEADER
from server.dialect import MESSAGE_HEADERS, MessageHeaders, reads_messages
from server.errors import APIError, InvalidRequest, MethodNotAllowed, NotFound, ServerError
from server.openapi import document
from server.refusals import log_refusal
from server.request_id import RequestIdMiddleware, request_id_of
from server.routes import (
    admin,
    admin_models,
    admin_plans,
    batches,
    chat,
    completions,
    embeddings,
    files,
    health,
    messages,
    models,
    moderations,
    openapi,
    responses,
    tokenize,
    usage,
)
from server.services import Services
from server.websocket import refuse
from server.wire import message_errors
from server.wire.common import encode

ROUTERS = (
    chat.router,
    completions.router,
    messages.router,
    responses.router,
    embeddings.router,
    moderations.router,
    tokenize.router,
    models.router,
    files.router,
    batches.router,
    usage.router,
    health.router,
    openapi.router,
    admin.router,
    admin_plans.router,
    admin_models.router,
)
EXPOSED_HEADERS = (
    ["x-request-id", "retry-after", "retry-after-ms", "x-should-retry", HEADER]
    + [f"x-ratelimit-{kind}-{unit}" for kind in ("limit", "remaining", "reset") for unit in ("requests", "tokens")]
    + MESSAGE_HEADERS
)


def create_app(services: Services) -> ASGIApp:
    """The stack, from the outside in: ids, traces, Anthropic's headers, CORS, errors, authentication, routes."""
    origins = services.settings.server.cors_origins
    app = _routes(services)
    stack: ASGIApp = MessageHeaders(_allow_origins(app, origins) if origins else app)
    if services.tracer is not None:
        from server.tracing.middleware import TraceMiddleware  # here, since it needs an optional library

        stack = TraceMiddleware(stack, services.tracer)
    return RequestIdMiddleware(stack)


def _routes(services: Services) -> FastAPI:
    app = FastAPI(
        title="Penstock",
        dependencies=[Depends(authenticate_route)],  # of every route: the default is deny
        openapi_url=None,  # ours has authentication
        redirect_slashes=False,
    )
    app.state.penstock = services
    app.state.openapi = functools.cache(create_document)
    for router in ROUTERS:
        app.include_router(router)
    app.add_api_websocket_route("/{path:path}", _unknown_websocket)
    app.add_exception_handler(APIError, _api_error)  # type: ignore[arg-type]  # one handler for both kinds
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(ClientDisconnect, _client_left)
    app.add_exception_handler(Exception, _unexpected)
    return app


def create_document() -> dict[str, Any]:
    """What `/openapi.json` answers."""
    routes = (route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute))
    return document(routes, version("penstock"))


def _allow_origins(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
        allow_headers=["*"],
        expose_headers=EXPOSED_HEADERS,
    )


def _answer(connection: HTTPConnection, error: APIError) -> Response:
    log_refusal(connection, error)
    if reads_messages(connection.scope):
        body = encode(message_errors.envelope(error, request_id_of(connection)))
        return Response(body, message_errors.status_of(error), error.headers, "application/json")
    return JSONResponse(error.envelope(), error.status, error.headers)


async def _api_error(connection: Request | WebSocket, error: APIError) -> Response | None:
    if isinstance(connection, WebSocket):
        await refuse(connection, error)
        return None
    return _answer(connection, error)


async def _http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own: unknown routes and wrong methods."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.scope['path'][:128]}"  # `request.url` is made from the client's Host
    headers = dict(error.headers or {})
    match error.status_code:
        case 404:
            return _answer(request, NotFound(f"Unknown route: {where}.", code="unknown_url", headers=headers))
        case 405:
            allowed = {"allow": _allowed_methods(request)}
            return _answer(request, MethodNotAllowed(f"Method not allowed: {where}.", headers=allowed))
        case status:
            refused = InvalidRequest(str(error.detail), headers=headers)
            refused.status = status
            return _answer(request, refused)


def _allowed_methods(request: Request) -> str:
    """Starlette names those of the first route alone that has this path."""
    routes = [route for router in ROUTERS for route in router.routes if isinstance(route, Route)]
    matching = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return ", ".join(sorted({method for route in matching for method in route.methods or ()}))


async def _unknown_websocket(websocket: WebSocket) -> None:
    raise NotFound(f"Unknown route: {websocket.scope['path'][:128]}.", code="unknown_url")


async def _client_left(request: Request, error: Exception) -> Response:
    """In the middle of its body. Nobody reads this answer, and nothing is wrong with the server."""
    return Response(status_code=499)


async def _validation_error(request: Request, error: Exception) -> Response:
    """Bodies are read by `wire.body`; this is for a malformed path or query."""
    assert isinstance(error, RequestValidationError)
    return _answer(request, InvalidRequest("The request is malformed."))


async def _unexpected(request: Request, error: Exception) -> Response:
    """The traceback is logged by the server; the client learns nothing of it."""
    message = "The server had an error while processing your request."
    return _answer(request, ServerError(message, headers={"connection": "close"}))  # as the server will do
