"""What the items of `/v1/responses` hold: parts of content, as they come and as they are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from server.wire.common import MAX_PARTS, RequestModel, at_most


class CacheBreakpoint(RequestModel):
    mode: Literal["explicit"]
    ttl: Literal["30m", "12h"] | None = None


class InputText(RequestModel):
    NO_EFFECT: ClassVar[frozenset[str]] = frozenset({"prompt_cache_breakpoint"})

    type: Literal["input_text", "text"]  # the second as chat has it, and Open Responses
    text: str
    prompt_cache_breakpoint: CacheBreakpoint | None = None


class OutputText(RequestModel):
    type: Literal["output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class Refusal(RequestModel):
    type: Literal["refusal"]
    refusal: str


class InputImage(RequestModel):
    """Only for models whose template has words for an image."""

    NO_EFFECT: ClassVar[frozenset[str]] = frozenset({"prompt_cache_breakpoint"})

    type: Literal["input_image"]
    image_url: str | None = None
    file_id: str | None = None
    detail: Literal["low", "high", "auto", "original"] | None = None
    prompt_cache_breakpoint: CacheBreakpoint | None = None


_PARTS = ("input_text", "text", "output_text", "refusal", "input_image")


def _known_part(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind not in _PARTS:
        message = "Models here read text; a part of type '{kind}' is not supported"
        raise PydanticCustomError("unsupported_content", message, {"kind": kind[:64]})
    return value


Part = Annotated[
    Annotated[InputText | OutputText | Refusal | InputImage, Field(discriminator="type")],
    BeforeValidator(_known_part),
]


def _as_parts(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "input_text", "text": value}]
    if isinstance(value, list):
        return value
    raise PydanticCustomError("content_type", "Expected a string or a list of content parts")


Parts = Annotated[
    list[Part],
    Field(fail_fast=True),
    BeforeValidator(_as_parts, json_schema_input_type=str | list[Part]),
    at_most(MAX_PARTS),
]


def kept_part(part: dict[str, Any], role: str) -> dict[str, Any]:
    """Words of the assistant are output, all others input."""
    kind = part["type"]
    if role == "assistant" and kind in ("input_text", "text", "output_text"):
        return {"annotations": [], "logprobs": []} | part | {"type": "output_text"}
    if kind in ("text", "output_text"):
        return {"type": "input_text", "text": part["text"]}
    return {"detail": "auto"} | part if kind == "input_image" else part


def kept_output(parts: Sequence[dict[str, Any]]) -> str | list[dict[str, Any]]:
    if len(parts) == 1 and parts[0].keys() == {"type", "text"}:
        return str(parts[0]["text"])
    return [kept_part(part, "user") for part in parts]
