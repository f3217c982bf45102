"""`/v1/embeddings`, and the routes that compare texts: `/v1/rerank` and `/v1/score`, also without the version."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from engines.types import Usage
from server.routes.common import CurrentCaller, CurrentServices, limit_headers_on_errors, read
from server.vector_answer import VectorAnswer
from server.vectors import Shape, scores, vectors_of
from server.wire.answers import answers
from server.wire.common import ResponseHead
from server.wire.embeddings import EmbeddingList, EmbeddingRequest, embedding_list
from server.wire.rerank import RerankAnswer, RerankRequest, ScoreList, ScoreRequest, rerank_answer, score_list
from server.wire.takes import takes

router = APIRouter()


@router.post("/v1/embeddings")
@takes(EmbeddingRequest)
@answers(EmbeddingList)
async def create(request: Request, caller: CurrentCaller, services: CurrentServices) -> Response:
    async with limit_headers_on_errors(caller.principal, services):
        body = await read(request, EmbeddingRequest, services)
        generation = await services.vectors.embed(caller, body)
    shape = Shape(body.dimensions, vectors_of(generation.job.deployment).normalized)

    def render(head: ResponseHead, vectors: list[bytes], usage: Usage) -> bytes:
        return embedding_list(head, [shape.of(vector) for vector in vectors], usage, body.encoding_format)

    return VectorAnswer(generation, render)


@router.post("/rerank")
@router.post("/v1/rerank")
@router.post("/v2/rerank")
@takes(RerankRequest)
@answers(RerankAnswer)
async def rerank(request: Request, caller: CurrentCaller, services: CurrentServices) -> Response:
    async with limit_headers_on_errors(caller.principal, services):
        body = await read(request, RerankRequest, services)
        generation = await services.vectors.compare(caller, body.model, body.comparison, "rerank")
    comparison, task = body.comparison, generation.job.deployment.task

    def render(head: ResponseHead, vectors: list[bytes], usage: Usage) -> bytes:
        return rerank_answer(head, scores(vectors, comparison, task), usage, body)

    return VectorAnswer(generation, render)


@router.post("/score")
@router.post("/v1/score")
@takes(ScoreRequest)
@answers(ScoreList)
async def score(request: Request, caller: CurrentCaller, services: CurrentServices) -> Response:
    async with limit_headers_on_errors(caller.principal, services):
        body = await read(request, ScoreRequest, services)
        generation = await services.vectors.compare(caller, body.model, body.comparison, "score")
    comparison, task = body.comparison, generation.job.deployment.task

    def render(head: ResponseHead, vectors: list[bytes], usage: Usage) -> bytes:
        return score_list(head, scores(vectors, comparison, task), usage)

    return VectorAnswer(generation, render)
