"""`/v1/messages` and `/v1/messages/count_tokens`: Anthropic's requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from server.errors import InvalidRequest
from server.wire.chat import HOLDS_TO_GRAMMAR, KNOWS_TOOLS
from server.wire.common import MAX_STOPS, RequestModel, at_least, at_most, refuse_unsupported, within
from server.wire.message_blocks import CacheControl, InputMessages, Texts
from server.wire.sampling import ENGINE_HAS_IT, Fraction, ModelName, StopString, TokenCount
from server.wire.tools import MAX_TOOLS, Schema

MAX_EXAMPLES = 64

ToolName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]


def _custom_alone(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind != "custom":
        message = "Tools of type '{kind}' are not supported here; expected custom tools"
        raise PydanticCustomError("unsupported_tool", message, {"kind": kind[:64]})
    return value


def _of_objects(schema: Schema) -> Schema:
    """A tool's input is an object."""
    if schema.get("type") != "object":
        raise PydanticCustomError("input_schema", "Expected a schema whose 'type' is \"object\"")
    return schema


class CustomTool(RequestModel):
    NO_EFFECT: ClassVar[frozenset[str]] = frozenset({"cache_control", "eager_input_streaming", "allowed_callers"})

    name: ToolName
    input_schema: Annotated[Schema, AfterValidator(_of_objects)]
    description: str | None = None
    input_examples: Annotated[list[dict[str, Any]], at_most(MAX_EXAMPLES)] | None = None
    strict: bool | None = None
    type: Literal["custom"] | None = None
    cache_control: CacheControl | None = None
    eager_input_streaming: bool | None = None  # every input is streamed as it is written
    allowed_callers: list[Literal["direct"]] | None = None  # there is no other
    defer_loading: Literal[False] | None = None

    _check_kind = model_validator(mode="before")(_custom_alone)


class FreeChoice(RequestModel):
    type: Literal["auto", "any"]
    disable_parallel_tool_use: bool | None = None


class NamedChoice(RequestModel):
    type: Literal["tool"]
    name: ToolName
    disable_parallel_tool_use: bool | None = None


class NoChoice(RequestModel):
    type: Literal["none"]


ToolChoice = Annotated[FreeChoice | NamedChoice | NoChoice, Field(discriminator="type")]


class ThinkingEnabled(RequestModel):
    """How much a model thinks is its own affair: `max_tokens` bounds it, `budget_tokens` does not. Thoughts are shown
    as they are where a summary would do."""

    NO_EFFECT: ClassVar[frozenset[str]] = frozenset({"budget_tokens"})

    type: Literal["enabled"]
    budget_tokens: TokenCount
    display: Literal["summarized", "omitted"] | None = None


class ThinkingAdaptive(RequestModel):
    type: Literal["adaptive"]
    display: Literal["summarized", "omitted"] | None = None


class ThinkingDisabled(RequestModel):
    type: Literal["disabled"]


Thinking = Annotated[ThinkingEnabled | ThinkingAdaptive | ThinkingDisabled, Field(discriminator="type")]


class JsonFormat(RequestModel):
    type: Literal["json_schema"]
    json_schema: Annotated[Schema, Field(alias="schema")]


class OutputConfig(RequestModel):
    WHERE: ClassVar[Mapping[str, str]] = {"effort": "the model's template has it", "format": HOLDS_TO_GRAMMAR}

    effort: Literal["low", "medium", "high", "xhigh"] | None = None
    format: JsonFormat | None = None


class Metadata(RequestModel):
    user_id: Annotated[str, StringConstraints(max_length=256)] | None = None


class PromptFields(RequestModel):
    """What decides of the prompt: all that tokens are counted of."""

    NO_EFFECT: ClassVar[frozenset[str]] = frozenset({"cache_control"})
    NEUTRAL: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "speed": ("standard",),
        "container": (),
        "mcp_servers": ([],),
        "inference_geo": (),
        "diagnostics": (),
        "thread": (),
    }
    WHERE: ClassVar[Mapping[str, str]] = {
        "tools": KNOWS_TOOLS,
        "thinking": "the model's template has a switch for it, or the model does so anyway",
    }

    model: ModelName
    messages: InputMessages
    system: Texts | None = None
    tools: Annotated[list[CustomTool], Field(fail_fast=True), at_most(MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None
    # Refused unless neutral.
    speed: Any = None

    @model_validator(mode="after")
    def _refuse_unsupported(self) -> Self:
        refuse_unsupported(self)
        return self


class CountTokensRequest(PromptFields):
    pass


class MessagesRequest(PromptFields):
    NO_EFFECT: ClassVar[frozenset[str]] = PromptFields.NO_EFFECT | {"metadata", "service_tier"}
    WHERE: ClassVar[Mapping[str, str]] = {
        **PromptFields.WHERE,
        **dict.fromkeys(("temperature", "top_p", "top_k"), ENGINE_HAS_IT),
    }

    max_tokens: TokenCount
    stop_sequences: Annotated[list[StopString], Field(fail_fast=True), at_most(MAX_STOPS)] | None = None
    temperature: Annotated[float, AfterValidator(within(0, 1))] | None = None
    top_p: Fraction | None = None
    top_k: Annotated[int, AfterValidator(at_least(0))] | None = None
    stream: bool | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    # Refused unless neutral.
    container: Any = None
    mcp_servers: Any = None
    inference_geo: Any = None
    diagnostics: Any = None
    thread: Any = None

    @property
    def hides_thinking(self) -> bool:
        shown = self.thinking if isinstance(self.thinking, ThinkingEnabled | ThinkingAdaptive) else None
        return shown is not None and shown.display == "omitted"

    @model_validator(mode="after")
    def _refuse_a_beginning(self) -> Self:
        if self.messages[-1].role == "assistant":
            message = (
                "'messages' ends with a message of the assistant: an answer that goes on from one is not supported."
            )
            raise InvalidRequest(message, param="messages")
        return self
