"""Texts compared: `/v1/rerank` in Cohere's and Jina's shape, `/v1/score` in vLLM's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Annotated, Any, ClassVar, Self

import msgspec
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from engines.types import Usage
from server.errors import InvalidRequest
from server.wire.common import RequestModel, ResponseHead, at_least, at_most, encode
from server.wire.embeddings import MAX_INPUTS, VectorUsage, vector_usage
from server.wire.sampling import ModelName


@dataclass(slots=True, frozen=True)
class Side:
    """One of the two lists of texts that are compared, and the parameter that it came by."""

    param: str
    texts: Sequence[str]
    is_list: bool = True

    def name(self, index: int) -> str:
        return f"{self.param}.{index}" if self.is_list else self.param


@dataclass(slots=True, frozen=True)
class Comparison:
    """Each text of the right side with its counterpart on the left, or with the only one there."""

    left: Side
    right: Side

    def lefts(self) -> Iterable[str]:
        texts = self.left.texts
        return repeat(texts[0], len(self.right.texts)) if len(texts) == 1 else texts


def _text_of(value: Any) -> Any:
    """A document is a string or, as Cohere and Jina have it too, an object with its text."""
    return value["text"] if isinstance(value, dict) and value.keys() == {"text"} else value


class DocumentObject(RequestModel):
    text: str


Document = Annotated[str, BeforeValidator(_text_of, json_schema_input_type=str | DocumentObject)]


class RerankRequest(RequestModel):
    NO_EFFECT: ClassVar[frozenset[str]] = frozenset({"user"})

    model: ModelName
    query: str
    documents: Annotated[list[Document], Field(min_length=1, fail_fast=True), at_most(MAX_INPUTS - 1)]
    top_n: Annotated[int, AfterValidator(at_least(1))] | None = None
    return_documents: bool | None = None
    user: str | None = None

    @property
    def comparison(self) -> Comparison:
        return Comparison(Side("query", [self.query], is_list=False), Side("documents", self.documents))


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_AS_LIST = BeforeValidator(_as_list, json_schema_input_type=str | list[str])
Texts = Annotated[
    list[str],
    Field(min_length=1, fail_fast=True),
    at_most(MAX_INPUTS),
    _AS_LIST,
]


class ScoreRequest(RequestModel):
    NO_EFFECT: ClassVar[frozenset[str]] = frozenset({"user"})

    model: ModelName
    text_1: Texts
    text_2: Texts
    user: str | None = None

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if len(self.text_1) not in (1, len(self.text_2)):
            message = f"'text_1' has {len(self.text_1)} texts and 'text_2' {len(self.text_2)}: expected 1, or as many."
            raise InvalidRequest(message, param="text_1")
        return self

    @property
    def comparison(self) -> Comparison:
        return Comparison(Side("text_1", self.text_1, len(self.text_1) > 1), Side("text_2", self.text_2))


class RankedDocument(msgspec.Struct, frozen=True):
    text: str


class Ranked(msgspec.Struct, frozen=True, omit_defaults=True):
    index: int
    relevance_score: float
    document: RankedDocument | None = None


class RerankAnswer(msgspec.Struct, frozen=True):
    id: str
    model: str
    usage: VectorUsage
    results: list[Ranked]


def rerank_answer(head: ResponseHead, scores: Sequence[float], usage: Usage, request: RerankRequest) -> bytes:
    """The best first; of equals, the earlier document."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[: request.top_n]
    documents = [RankedDocument(text) for text in request.documents] if request.return_documents else None
    results = [Ranked(index, scores[index], documents[index] if documents else None) for index in order]
    return encode(RerankAnswer(head.id, head.model, vector_usage(usage), results))


class Score(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    object: str = "score"
    score: float


class ScoreList(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: str = "list"
    created: int
    model: str
    data: list[Score]
    usage: VectorUsage


def score_list(head: ResponseHead, scores: Sequence[float], usage: Usage) -> bytes:
    data = [Score(index=index, score=score) for index, score in enumerate(scores)]
    return encode(ScoreList(id=head.id, created=head.created, model=head.model, data=data, usage=vector_usage(usage)))
