"""What each route answers: OpenAI's schema, and the SDK's type."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from anthropic.pagination import SyncPage as MessagesPage
from anthropic.types import Message, MessageTokensCount, ModelInfo, RawMessageStreamEvent
from openai.pagination import SyncCursorPage, SyncPage
from openai.types import (
    Batch,
    Completion,
    CreateEmbeddingResponse,
    FileDeleted,
    FileObject,
    Model,
    ModerationCreateResponse,
)
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import (
    CompactedResponse,
    Response,
    ResponseItemList,
    ResponsesServerEvent,
    ResponseStreamEvent,
)
from openai.types.responses.input_token_count_response import InputTokenCountResponse

from tests.tap import Answered


@dataclass(slots=True, frozen=True)
class Shape:
    """`schema`: its name in OpenAI's document; "" where OpenAI has none. `sdk`: the type that reads it."""

    schema: str
    sdk: Any


@dataclass(slots=True, frozen=True)
class Route:
    """What is answered to requests that match: a whole answer, and each event or frame of one in parts."""

    request: re.Pattern[str]
    whole: Shape | None = None
    event: Shape | None = None


def _route(request: str, whole: Shape | None = None, event: Shape | None = None) -> Route:
    return Route(re.compile(request), whole, event)


RESPONSE = Shape("Response", Response)
RESPONSE_EVENT = Shape("ResponseStreamEvent", ResponseStreamEvent)
RESPONSE_FRAME = Shape("ResponseStreamEvent", ResponsesServerEvent)
CHAT_CHUNK = Shape("CreateChatCompletionStreamResponse", ChatCompletionChunk)
COMPLETION = Shape("CreateCompletionResponse", Completion)
ROUTES = (
    _route("POST /v1/chat/completions", Shape("CreateChatCompletionResponse", ChatCompletion), CHAT_CHUNK),
    _route("WS /v1/chat/completions", None, CHAT_CHUNK),
    _route("POST /v1/completions", COMPLETION, COMPLETION),
    _route("POST /v1/embeddings", Shape("CreateEmbeddingResponse", CreateEmbeddingResponse)),
    _route("POST /v1/moderations", Shape("CreateModerationResponse", ModerationCreateResponse)),
    _route("GET /v1/models", Shape("ListModelsResponse", SyncPage[Model])),
    _route("GET /v1/models/.+(?<! of Anthropic)", Shape("Model", Model)),
    _route("POST /v1/responses", RESPONSE, RESPONSE_EVENT),
    _route("WS /v1/responses", None, RESPONSE_FRAME),
    _route("POST /v1/responses/input_tokens", Shape("TokenCountsResource", InputTokenCountResponse)),
    _route("POST /v1/responses/compact", Shape("CompactResource", CompactedResponse)),
    _route("GET /v1/responses/[^/]+", RESPONSE, RESPONSE_EVENT),
    _route("POST /v1/responses/[^/]+/cancel", RESPONSE),
    _route("GET /v1/responses/[^/]+/input_items", Shape("ResponseItemList", ResponseItemList)),
    _route("POST /v1/files", Shape("OpenAIFile", FileObject)),
    _route("GET /v1/files", Shape("ListFilesResponse", SyncCursorPage[FileObject])),
    _route("GET /v1/files/[^/]+", Shape("OpenAIFile", FileObject)),
    _route("DELETE /v1/files/[^/]+", Shape("DeleteFileResponse", FileDeleted)),
    _route("POST /v1/batches", Shape("Batch", Batch)),
    _route("GET /v1/batches", Shape("ListBatchesResponse", SyncCursorPage[Batch])),
    _route("GET /v1/batches/[^/]+", Shape("Batch", Batch)),
    _route("POST /v1/batches/[^/]+/cancel", Shape("Batch", Batch)),
    _route("POST /v1/messages", Shape("", Message), Shape("", RawMessageStreamEvent)),
    _route("POST /v1/messages/count_tokens", Shape("", MessageTokensCount)),
    _route("GET /v1/models of Anthropic", Shape("", MessagesPage[ModelInfo])),
    _route("GET /v1/models/.+ of Anthropic", Shape("", ModelInfo)),
)


def route_of(answered: Answered) -> Route | None:
    client = " of Anthropic" if answered.is_to_anthropic and answered.path.startswith("/v1/models") else ""
    request = f"{answered.method} {answered.path}{client}"
    return next((route for route in ROUTES if route.request.fullmatch(request)), None)
