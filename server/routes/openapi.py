"""`/openapi.json`: every route, for any valid key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse

from server.wire.answers import answers

router = APIRouter()


@router.get("/openapi.json")
@answers()
async def openapi(request: Request) -> JSONResponse:
    """This document."""
    document = cast(Callable[[], dict[str, Any]], request.app.state.openapi)
    return JSONResponse(document())
