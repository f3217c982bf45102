"""What a route answers, declared beside the route: `server.openapi` tells of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel

from server.wire.common import ErrorEnvelope

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
AnswerType = type[msgspec.Struct] | type[BaseModel]
JSON = "application/json"
_ATTRIBUTE = "_answers"


@dataclass(slots=True, frozen=True, kw_only=True)
class Answered:
    """`types`: any of them, as `media`, with any of `statuses`. `streams`: as events too, where the request asks."""

    types: tuple[AnswerType, ...] = ()
    media: str = JSON
    statuses: tuple[int, ...] = (200,)
    streams: bool = False
    error: AnswerType = ErrorEnvelope


def answers(*types: AnswerType, **fields: Any) -> Callable[[Endpoint], Endpoint]:
    """Stands below the route's own decorator; `fields` are those of Answered. A route whose function returns a
    pydantic model need not say it again."""

    def declare(endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, _ATTRIBUTE, Answered(types=types, **fields))
        return endpoint

    return declare


def answered_by(endpoint: Callable[..., Any]) -> Answered:
    found: Answered = getattr(endpoint, _ATTRIBUTE, Answered())
    return found
