"""What requests of the Responses API hold besides items: tools and the choice among them, forms of text, reasoning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError

from server.wire.chat import HOLDS_TO_GRAMMAR
from server.wire.common import RequestModel, at_most
from server.wire.tools import MAX_TOOLS, FunctionName, JsonObjectFormat, Schema, TextFormat


class FunctionTool(RequestModel):
    """`strict` or not, calls are held to the schema; strict, one that can't be held to is refused."""

    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: Schema | None = None
    strict: bool | None = None
    allowed_callers: list[Literal["direct"]] | None = None
    defer_loading: Literal[False] | None = None
    is_async: Annotated[Literal[False] | None, Field(alias="async")] = None
    output_schema: None = None


def function_only(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind != "function":
        message = "Tools of type '{kind}' are not supported: this server has no tools of its own"
        raise PydanticCustomError("unsupported_tool", message, {"kind": kind[:64]})
    return value


class FunctionReference(RequestModel):
    type: Literal["function"]
    name: FunctionName


AnyReference = Annotated[FunctionReference, BeforeValidator(function_only)]


class AllowedTools(RequestModel):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[AnyReference], Field(min_length=1), at_most(MAX_TOOLS)]


ToolChoice = (
    Literal["none", "auto", "required"] | Annotated[FunctionReference | AllowedTools, Field(discriminator="type")]
)


class JsonSchemaFormat(RequestModel):
    type: Literal["json_schema"]
    name: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    json_schema: Annotated[Schema, Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class TextConfig(RequestModel):
    NEUTRAL: ClassVar[Mapping[str, tuple[object, ...]]] = {"verbosity": ("medium",)}
    WHERE: ClassVar[Mapping[str, str]] = {"format": HOLDS_TO_GRAMMAR}

    format: Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningOptions(RequestModel):
    """A summary is not written: what the model thinks is told in full."""

    NO_EFFECT: ClassVar[frozenset[str]] = frozenset({"summary", "generate_summary"})
    WHERE: ClassVar[Mapping[str, str]] = {"effort": "the model's template has it"}

    effort: str | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: Literal["auto"] | None = None
    mode: Literal["standard"] | None = None


class CacheOptions(RequestModel):
    mode: Literal["implicit", "explicit"] | None = None
    ttl: Literal["30m", "12h"] | None = None
    prewarm: Literal[False] | None = None
    comparison_response_id: None = None


class ResponseStreamOptions(RequestModel):
    NEUTRAL: ClassVar[Mapping[str, tuple[object, ...]]] = {}

    include_obfuscation: bool | None = None


Tools = Annotated[list[Annotated[FunctionTool, BeforeValidator(function_only)]], at_most(MAX_TOOLS)]
