"""`POST /v1/moderations`: OpenAI's shapes, judged by the configured content filter."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Annotated, Any, Literal

import msgspec
from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

from server.errors import ModelNotFound
from server.text.content_filter import BLOCKLIST, CATEGORIES
from server.wire.common import RequestModel, at_most, encode, new_id

MAX_TEXTS = 2048
MODEL = "content-filter"
_PREFIXES = ("omni-moderation-", "text-moderation-")  # OpenAI's names, for code that was written for those


def _known_model(name: str) -> str:
    if name != MODEL and not name.startswith(_PREFIXES):
        raise ModelNotFound(f"The model '{name}' does not moderate: leave it out, or send {MODEL}.", param="model")
    return name


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class TextPart(RequestModel):
    type: Literal["text"]
    text: str


class ModerationRequest(RequestModel):
    model: Annotated[str, StringConstraints(max_length=256), AfterValidator(_known_model)] | None = None
    input: Annotated[
        Annotated[list[str], Field(min_length=1, fail_fast=True)]
        | Annotated[list[TextPart], Field(min_length=1, fail_fast=True)],
        at_most(MAX_TEXTS),
        BeforeValidator(_as_list, json_schema_input_type=str | list[str] | list[TextPart]),
    ]

    @property
    def texts(self) -> list[str]:
        """One a result: parts belong to one message."""
        parts = [part.text for part in self.input if isinstance(part, TextPart)]
        return ["\n".join(parts)] if parts else [text for text in self.input if isinstance(text, str)]


class Moderation(msgspec.Struct, frozen=True):
    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[str]]


class ModerationAnswer(msgspec.Struct, frozen=True):
    id: str
    model: str
    results: list[Moderation]


def moderation_answer(texts: Iterable[str], moderate: Callable[[str], Collection[str]]) -> bytes:
    """`moderate` gives a text's categories: OpenAI's, and BLOCKLIST, which is one of ours beside them."""
    return encode(ModerationAnswer(new_id("modr"), MODEL, [_moderation(moderate(text)) for text in texts]))


def _moderation(found: Collection[str]) -> Moderation:
    """A score is 0 or 1: a term is there or it is not."""
    names = (*CATEGORIES, BLOCKLIST)
    return Moderation(
        flagged=bool(found),
        categories={name: name in found for name in names},
        category_scores={name: float(name in found) for name in names},
        category_applied_input_types={name: ["text"] for name in names},
    )
