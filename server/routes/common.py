"""What the endpoint families share: who calls, and with which services."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, NamedTuple, Protocol, TypeVar, cast

from fastapi import Depends
from pydantic import BaseModel
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from quota.ledger import LedgerUnavailable
from server.access import current_principal
from server.auth import Principal
from server.cache.wish import HEADER, wish_of
from server.entitlement import quota_unavailable
from server.errors import APIError
from server.generation import Generation
from server.inner import inner_of
from server.job import Caller
from server.reachable import DATABASE_FAULTS, database_away
from server.request_id import request_id_of
from server.services import Services
from server.settings import Settings
from server.streaming import ChunkEvents, Events, EventStream, Render, WholeAnswer
from server.tracing.context import trace_of
from server.wire.body import read_json
from server.wire.common import ChunkEncoder

Body = TypeVar("Body", bound=BaseModel)

MIN_KEEP_ALIVE = 0.5  # seconds; however impatient a client says it is


def services_of(connection: HTTPConnection) -> Services:
    return cast(Services, connection.app.state.penstock)


async def current_services(connection: HTTPConnection) -> Services:
    """A dependency that is no coroutine would be called in a thread: two switches for every request."""
    return services_of(connection)


CurrentServices = Annotated[Services, Depends(current_services)]
CurrentPrincipal = Annotated[Principal, Depends(current_principal)]


async def current_caller(request: Request, principal: CurrentPrincipal) -> Caller:
    inner = inner_of(request)
    return Caller(
        features=inner.features if inner else frozenset(),
        priority=inner.priority if inner else 0,
        total_timeout=inner.total_timeout if inner else None,
        principal=principal,
        request_id=request_id_of(request),
        endpoint=request.scope["path"],
        client_request_id=request.headers.get("x-request-id", "")[:128],
        read_timeout=_seconds(request.headers.get("x-stainless-read-timeout")),
        cache=wish_of(request.headers.get(HEADER), services_of(request).settings.cache.is_on),
        trace=trace_of(request),
    )


CurrentCaller = Annotated[Caller, Depends(current_caller)]


def _seconds(text: str | None) -> float | None:
    """OpenAI's SDK says how long it waits for a byte; what is no positive number says nothing."""
    try:
        seconds = float(text or "")
    except ValueError:
        return None
    return seconds if 0 < seconds < math.inf else None


class HasSettings(Protocol):
    @property
    def settings(self) -> Settings: ...


async def read(request: Request, model: type[Body], services: HasSettings) -> Body:
    """The body, within the configured bounds. Authentication has happened: it is a dependency of the route."""
    settings = services.settings
    return await read_json(request, model, settings.limits.body_bytes, settings.timeouts.body)


@asynccontextmanager
async def limit_headers_on_errors(principal: Principal, services: Services) -> AsyncIterator[None]:
    """For what is done before a reservation, whose own errors have these headers: here nothing was charged."""
    try:
        yield
    except APIError as error:
        error.headers = await services.entitlement.headers(principal) | error.headers
        raise


async def store_is_there() -> AsyncIterator[None]:
    """For routes that read the records: a database or a ledger that is away is a 503, not a fault of ours."""
    try:
        yield
    except LedgerUnavailable as error:
        raise quota_unavailable() from error
    except DATABASE_FAULTS as error:
        raise database_away(error) from error


def respond(generation: Generation, render: Render, encoder: type[ChunkEncoder], services: Services) -> Response:
    """The response runs the generation: whole, or as chunks."""
    job = generation.job
    if not job.streamed:
        return WholeAnswer(generation, render)
    chunks = encoder(job.head, include_usage=job.include_usage, choices=job.num_choices)
    return stream(generation, ChunkEvents(generation, chunks), services)


def stream(generation: Generation, events: Events, services: Services) -> EventStream:
    patience = patience_of(generation.job.caller, services)
    return EventStream(generation, events, keep_alive=patience.keep_alive, write_timeout=patience.write_timeout)


class Patience(NamedTuple):
    """Seconds."""

    keep_alive: float
    write_timeout: float


def patience_of(caller: Caller, services: Services) -> Patience:
    """A client that gives up after n seconds without a byte hears from us before that."""
    timeouts, theirs = services.settings.timeouts, caller.read_timeout
    keep_alive = min(timeouts.keep_alive, math.inf if theirs is None else max(theirs / 2, MIN_KEEP_ALIVE))
    return Patience(keep_alive, timeouts.write)
