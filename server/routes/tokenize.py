"""`/tokenize` and `/detokenize`, also under /v1: what a model's tokenizer makes of a text, messages or token ids.

No model runs and nothing is charged; a body is bounded as every other's is, and long ones are worked off the loop.
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.auth import Principal
from server.off_loop import off_loop_if
from server.pipeline import LONG_TEXT
from server.registry import Deployment
from server.routes.common import CurrentPrincipal, CurrentServices, limit_headers_on_errors, read
from server.services import Services
from server.text.prompt import strings_in
from server.wire.answers import answers
from server.wire.prompts import check_token_prompt
from server.wire.takes import takes
from server.wire.tokenize import (
    DetokenizeAnswer,
    DetokenizeRequest,
    TokenizeAnswer,
    TokenizeRequest,
    detokenize_answer,
    tokenize_answer,
)

router = APIRouter()


@router.post("/tokenize")
@router.post("/v1/tokenize")
@takes(TokenizeRequest)
@answers(TokenizeAnswer)
async def tokenize(request: Request, principal: CurrentPrincipal, services: CurrentServices) -> Response:
    async with limit_headers_on_errors(principal, services):
        body = await read(request, TokenizeRequest, services)
        deployment = services.router.resolve(body.model, principal)
        messages = [message.for_template() for message in body.messages or ()]
        size = sum(map(len, strings_in([body.prompt or "", messages])))
        answer = await off_loop_if(size > LONG_TEXT, lambda: _tokenize(body, messages, deployment))
    return await _json(answer, principal, services)


def _tokenize(body: TokenizeRequest, messages: list[dict[str, object]], deployment: Deployment) -> bytes:
    if body.prompt is not None:
        ids = deployment.tokenizer.encode(body.prompt, body.add_special_tokens is not False)
    else:
        ids = deployment.encoder.encode(messages, add_generation_prompt=body.add_generation_prompt is not False)
    strings = deployment.tokenizer.pieces(ids) if body.return_token_strs else None
    return tokenize_answer(ids, deployment.limits.context, strings)


@router.post("/detokenize")
@router.post("/v1/detokenize")
@takes(DetokenizeRequest)
@answers(DetokenizeAnswer)
async def detokenize(request: Request, principal: CurrentPrincipal, services: CurrentServices) -> Response:
    async with limit_headers_on_errors(principal, services):
        body = await read(request, DetokenizeRequest, services)
        deployment, tokens = services.router.resolve(body.model, principal), body.tokens
        if tokens:
            check_token_prompt(tokens, deployment.tokenizer.vocab_size, "tokens")
        text = await off_loop_if(len(tokens) > LONG_TEXT, lambda: deployment.tokenizer.decode_all(tokens))
    return await _json(detokenize_answer(text), principal, services)


async def _json(answer: bytes, principal: Principal, services: Services) -> Response:
    headers = await services.entitlement.headers(principal)
    return Response(answer, headers=headers, media_type="application/json")
