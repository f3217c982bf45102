"""`/v1/moderations`: what the configured content filter says of texts. No model runs, and nothing is charged."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.errors import NotFound
from server.off_loop import off_loop_if
from server.pipeline import LONG_TEXT
from server.routes.common import CurrentPrincipal, CurrentServices, limit_headers_on_errors, read
from server.wire.answers import answers
from server.wire.moderations import ModerationAnswer, ModerationRequest, moderation_answer
from server.wire.takes import takes

router = APIRouter()


@router.post("/v1/moderations")
@takes(ModerationRequest)
@answers(ModerationAnswer)
async def create(request: Request, principal: CurrentPrincipal, services: CurrentServices) -> Response:
    async with limit_headers_on_errors(principal, services):
        body = await read(request, ModerationRequest, services)
        moderator, texts = services.content_filter, body.texts
        if not moderator.can_moderate:  # to call every text harmless would be a lie
            message = "This server can't moderate: its configuration has no terms in [filter]."
            raise NotFound(message, code="moderation_not_configured")
        size = sum(map(len, texts))
        answer = await off_loop_if(size > LONG_TEXT, lambda: moderation_answer(texts, moderator.moderate))
    headers = await services.entitlement.headers(principal)
    return Response(answer, headers=headers, media_type="application/json")
