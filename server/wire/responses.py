"""`/v1/responses`: what a request may say, over HTTP and over a WebSocket, and to the other routes of its family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from server.errors import InvalidRequest, UnsupportedParameter
from server.wire.chat import KNOWS_TOOLS, MAX_TEMPLATE_KWARGS
from server.wire.common import (
    MAX_INT,
    MAX_LOGIT_BIAS,
    MAX_STOP_TOKENS,
    MAX_STOPS,
    RequestModel,
    at_least,
    at_most,
    refuse_unsupported,
    within,
)
from server.wire.response_items import Input, ItemId
from server.wire.response_options import (
    CacheOptions,
    ReasoningOptions,
    ResponseStreamOptions,
    TextConfig,
    ToolChoice,
    Tools,
)
from server.wire.sampling import (
    AS_LIST,
    ENGINE_HAS_IT,
    ENGINE_NEUTRAL,
    Fraction,
    GenerationFields,
    Metadata,
    ModelName,
    Penalty,
    StopString,
    TokenCount,
    TokenId,
)

ENCRYPTED_REASONING = "reasoning.encrypted_content"
LOGPROBS = "message.output_text.logprobs"

# Parameters that would change the answer and are not honoured, with the values besides null that leave it as it is.
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "conversation": (),
    "prompt": (),
    "moderation": (),
    "context_management": ([],),
    "access_programs": (),
    "image": ({"context_compression": "auto"}, {"context_compression": "disabled"}),
    "personality": (),
}

Include = Literal[
    # of tools that this server does not have: such items never occur
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "message.input_image.image_url",  # always there
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
]
Includes = Annotated[list[Include], at_most(16)]


_NO_EFFECT = frozenset({"prompt_cache_key", "prompt_cache_retention", "prompt_cache_options", "service_tier"})


class ConversationFields(RequestModel):
    """What the model is given to read, of all requests that give it something."""

    NEUTRAL: ClassVar[Mapping[str, tuple[object, ...]]] = NEUTRAL

    model: ModelName
    input: Input = Field(default_factory=list)
    instructions: str | None = None
    previous_response_id: ItemId | None = None

    @model_validator(mode="after")
    def _check_given(self) -> Self:
        refuse_unsupported(self)
        if not self.input and self.previous_response_id is None and not self.instructions:
            message = "Missing required parameter: 'input'."
            raise InvalidRequest(message, param="input", code="missing_required_parameter")
        return self


class AnswerFields(ConversationFields):
    """What it is asked for, as far as that is part of what it reads."""

    WHERE: ClassVar[Mapping[str, str]] = {"tools": KNOWS_TOOLS}

    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: ReasoningOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None
    conversation: Any = None

    @model_validator(mode="after")
    def _check_verbosity(self) -> Self:
        if self.text is not None and self.text.verbosity not in (None, "medium"):
            raise UnsupportedParameter("text.verbosity")
        return self


class ResponsesRequest(AnswerFields):
    NO_EFFECT: ClassVar[frozenset[str]] = _NO_EFFECT | {
        "metadata",
        "user",
        "safety_identifier",
        "max_tool_calls",  # of tools of the server's own: there are none
    }
    WHERE: ClassVar[Mapping[str, str]] = (
        dict(AnswerFields.WHERE)
        | dict.fromkeys(sorted(ENGINE_NEUTRAL), ENGINE_HAS_IT)
        | {"chat_template_kwargs": "the model's template has such variables"}
        | {"top_logprobs": GenerationFields.WHERE["top_logprobs"]}
    )

    max_output_tokens: TokenCount | None = None
    max_tool_calls: Annotated[int, AfterValidator(at_least(0))] | None = None
    temperature: Annotated[float, AfterValidator(within(0, 2))] | None = None
    top_p: Fraction | None = None
    top_logprobs: Annotated[int, AfterValidator(within(0, 20))] | None = None
    include: Includes | None = None
    store: bool | None = None
    background: bool | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    metadata: Metadata | None = None
    user: str | None = None
    safety_identifier: Annotated[str, StringConstraints(max_length=128)] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    prompt_cache_options: CacheOptions | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"] | None = None
    # As users of other engines send them, by extra_body.
    top_k: Annotated[int, AfterValidator(at_least(-1))] | None = None
    min_p: Fraction | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, AfterValidator(within(0, 10, above=True))] | None = None
    logit_bias: Annotated[dict[str, float], at_most(MAX_LOGIT_BIAS)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[list[StopString], Field(fail_fast=True), at_most(MAX_STOPS), AS_LIST] = Field(default_factory=list)
    stop_token_ids: Annotated[list[TokenId], Field(fail_fast=True), at_most(MAX_STOP_TOKENS)] | None = None
    min_tokens: Annotated[int, AfterValidator(at_least(0))] | None = None
    ignore_eos: bool | None = None
    chat_template_kwargs: Annotated[dict[str, Any], at_most(MAX_TEMPLATE_KWARGS)] | None = None
    # Refused unless neutral: see NEUTRAL.
    access_programs: Any = None
    context_management: Any = None
    image: Any = None
    moderation: Any = None
    prompt: Any = None

    @property
    def is_stored(self) -> bool:
        return self.store is not False

    @property
    def obfuscates(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_obfuscation)

    @property
    def tells_logprobs(self) -> bool:
        return self.includes(LOGPROBS) or bool(self.top_logprobs)

    def includes(self, what: str) -> bool:
        return what in (self.include or ())

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("'stream_options' is only allowed with 'stream': true.", param="stream_options")
        if self.background and not self.is_stored:
            raise InvalidRequest("'background' needs 'store': true.", param="background")
        return self


class ResponseFrame(ResponsesRequest):
    """`response.create`, over a WebSocket: every answer is streamed, none runs in the background."""

    type: Literal["response.create"]
    stream: Annotated[Literal[True], BeforeValidator(lambda value: True if value is None else value)] = True
    background: Literal[False] | None = None
    stream_id: Annotated[str, StringConstraints(min_length=1, max_length=128)] | None = None  # echoed on its events
    generate: bool | None = None  # false: nothing is generated; what follows may continue from it


class InputTokensRequest(AnswerFields):
    personality: Any = None


class CompactRequest(ConversationFields):
    NO_EFFECT: ClassVar[frozenset[str]] = _NO_EFFECT

    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    prompt_cache_options: CacheOptions | None = None
    service_tier: Literal["auto", "default", "fast", "flex", "priority"] | None = None
    image: Any = None


# Query strings. Their values are text: not strict.


class _Query(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    include: tuple[Include, ...] = ()


class RetrieveQuery(_Query):
    stream: bool = False
    starting_after: Annotated[int, Field(ge=-1, le=MAX_INT)] | None = None
    include_obfuscation: bool = False

    @model_validator(mode="after")
    def _check_stream(self) -> Self:
        if self.starting_after is not None and not self.stream:
            raise InvalidRequest("'starting_after' is only allowed with 'stream': true.", param="starting_after")
        return self


class InputItemsQuery(_Query):
    after: ItemId | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"
