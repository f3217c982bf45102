"""`POST /v1/embeddings`: the request and its answer."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import msgspec
import numpy as np
from pydantic import AfterValidator, PlainValidator

from engines.types import Usage
from server.wire.common import RequestModel, ResponseHead, at_least, encode
from server.wire.prompts import AnyMixedForm, Pieces, Prompt, mixed_prompts
from server.wire.sampling import ModelName

MAX_INPUTS = 2048  # as OpenAI
MAX_REQUEST_TOKENS = 300_000  # of all inputs together, as OpenAI


class EmbeddingRequest(RequestModel):
    NO_EFFECT: ClassVar[frozenset[str]] = frozenset({"user"})
    WHERE: ClassVar[Mapping[str, str]] = {"dimensions": "the model is a Matryoshka one"}

    model: ModelName
    input: Annotated[
        list[Prompt | Pieces], PlainValidator(mixed_prompts(MAX_INPUTS), json_schema_input_type=AnyMixedForm)
    ]
    dimensions: Annotated[int, AfterValidator(at_least(1))] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    user: str | None = None
    priority: Annotated[int, AfterValidator(at_least(0))] | None = None


class VectorUsage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    total_tokens: int


class Embedding(msgspec.Struct, frozen=True, kw_only=True):
    object: str = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingList(msgspec.Struct, frozen=True, kw_only=True):
    object: str = "list"
    data: list[Embedding]
    model: str
    usage: VectorUsage


def embedding_list(head: ResponseHead, vectors: Sequence[bytes], usage: Usage, encoding: str | None) -> bytes:
    """The whole answer's JSON. `vectors` are little endian float32s, which is what OpenAI's base64 holds too."""
    form = _base64 if encoding == "base64" else _floats
    data = [Embedding(index=i, embedding=form(vector)) for i, vector in enumerate(vectors)]
    return encode(EmbeddingList(data=data, model=head.model, usage=vector_usage(usage)))


def vector_usage(usage: Usage) -> VectorUsage:
    return VectorUsage(usage.prompt_tokens, usage.prompt_tokens)


def _base64(vector: bytes) -> str:
    return base64.b64encode(vector).decode()


def _floats(vector: bytes) -> list[float]:
    numbers: list[float] = np.frombuffer(vector, "<f4").tolist()
    return numbers
