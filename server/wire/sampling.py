"""The sampling parameters that every generating endpoint takes, and how they become an engine's SamplingParams."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from engines.types import SamplingParams
from server.errors import InvalidRequest, UnsupportedParameter
from server.wire.common import (
    MAX_CHOICES,
    MAX_LOGIT_BIAS,
    MAX_METADATA,
    MAX_STOP_CHARACTERS,
    MAX_STOP_TOKENS,
    MAX_STOPS,
    RequestModel,
    StreamOptions,
    at_least,
    at_most,
    refuse_unsupported,
    within,
)
from server.wire.limits import ModelLimits

ENGINE_HAS_IT = "the model's engine has it"
TELLS_LOGPROBS = "the model's engine says how likely tokens are"

ModelName = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Penalty = Annotated[float, AfterValidator(within(-2, 2))]
Fraction = Annotated[float, AfterValidator(within(0, 1))]
TokenId = Annotated[int, AfterValidator(at_least(0))]
TokenCount = Annotated[int, AfterValidator(at_least(1))]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_CHARACTERS)]


Metadata = Annotated[
    dict[
        Annotated[str, StringConstraints(max_length=64)],
        Annotated[str, StringConstraints(max_length=512)],
    ],
    at_most(MAX_METADATA),
]


def as_list(value: Any) -> Any:
    """`stop` is null, a string or a list of strings; one form goes on."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else value


AS_LIST = BeforeValidator(as_list, json_schema_input_type=StopString | list[StopString] | None)


class GenerationFields(RequestModel):
    """The part that chat and legacy completions share. Fields typed Any are refused unless neutral (NEUTRAL)."""

    PROMPT_PARAM: ClassVar[str]  # the field that a too long prompt is blamed on
    PROMPT_NOUN: ClassVar[str]
    NO_EFFECT: ClassVar[frozenset[str]] = frozenset({"user", "metadata", "id_slot", "cache_prompt"})
    WHERE: ClassVar[Mapping[str, str]] = {
        "logprobs": f"{TELLS_LOGPROBS}, and no terms or personal data are masked",
        "top_logprobs": f"{TELLS_LOGPROBS}, and no terms or personal data are masked",
        "best_of": TELLS_LOGPROBS,
    }
    OTHER_NAMES: ClassVar[Mapping[str, str]] = {}  # of parameters that another endpoint's clients know by theirs

    model: ModelName
    max_tokens: TokenCount | None = None
    min_tokens: Annotated[int, AfterValidator(at_least(0))] | None = None
    ignore_eos: bool | None = None
    temperature: Annotated[float, AfterValidator(within(0, 2))] | None = None
    top_p: Fraction | None = None
    top_k: Annotated[int, AfterValidator(at_least(-1))] | None = None  # 0 and -1 are off
    min_p: Fraction | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, AfterValidator(within(0, 10, above=True))] | None = None
    logit_bias: (
        Annotated[
            dict[
                Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,9})$")],
                Annotated[float, AfterValidator(within(-100, 100))],
            ],
            at_most(MAX_LOGIT_BIAS),
        ]
        | None
    ) = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[
        list[StopString],
        Field(fail_fast=True),
        at_most(MAX_STOPS),
        AS_LIST,
    ] = Field(default_factory=list)
    stop_token_ids: Annotated[list[TokenId], Field(fail_fast=True), at_most(MAX_STOP_TOKENS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: Metadata | None = None
    n: Annotated[int, AfterValidator(within(1, MAX_CHOICES))] | None = None
    priority: Annotated[int, AfterValidator(at_least(0))] | None = None  # nobody pushes to the front
    # llama.cpp's: where a prompt is computed, and whether anew. The answer is the same.
    id_slot: int | None = None
    cache_prompt: bool | None = None
    # Of vLLM, refused unless neutral: see NEUTRAL.
    prompt_logprobs: Any = None
    return_token_ids: Any = None
    return_tokens_as_token_ids: Any = None

    @property
    def features(self) -> frozenset[str]:
        """What it uses of what keys can be kept from, and plans can limit."""
        used = {"stream": bool(self.stream), "logprobs": self.token_logprobs is not None}
        return frozenset(name for name, is_used in used.items() if is_used)

    @property
    def num_choices(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    @property
    def num_samples(self) -> int:
        """Answers that are computed to each prompt, of which the likeliest are told."""
        return self.num_choices

    @property
    def echoes(self) -> bool:
        """The prompt stands before its answers."""
        return False

    @property
    def only_prompt(self) -> bool:
        """No answer is wanted, only what is told of the prompt."""
        return False

    @property
    def token_logprobs(self) -> int | None:
        """The tokens of an answer are told of, with so many of the likeliest."""
        return None

    @property
    def prompt_token_logprobs(self) -> int | None:
        """The same of the prompt's."""
        return None

    @property
    def explicit_max_tokens(self) -> int | None:
        return self.max_tokens

    @classmethod
    def name_of(cls, param: str) -> str:
        return cls.OTHER_NAMES.get(param, param)

    @property
    def is_streamed(self) -> bool:
        """Whether something of the answer is told before its end."""
        return bool(self.stream)

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        refuse_unsupported(self)
        self._check_stream_options()
        self._check_lengths()
        return self

    def _check_stream_options(self) -> None:
        if self.stream_options is None:
            return
        if not self.stream:
            raise InvalidRequest("'stream_options' is only allowed with 'stream': true.", param="stream_options")
        if self.stream_options.include_obfuscation:
            raise UnsupportedParameter("stream_options.include_obfuscation")

    def _check_lengths(self) -> None:
        limit = self.explicit_max_tokens
        if limit is not None and self.min_tokens is not None and self.min_tokens > limit:
            message = f"'min_tokens' ({self.min_tokens}) is greater than the maximum of {limit} tokens asked for."
            raise InvalidRequest(message, param="min_tokens")


# What asks for nothing, where an engine has no such parameter.
ENGINE_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "temperature": (),
    "top_p": (1.0,),
    "top_k": (0, -1),
    "min_p": (0.0,),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
    "repetition_penalty": (1.0,),
    "logit_bias": ({},),
    "seed": (),
    "stop_token_ids": ([],),
}


def resolve(request: GenerationFields, prompt_tokens: int, limits: ModelLimits) -> SamplingParams:
    """One prompt's SamplingParams: the client's value, else the model's, else OpenAI's.

    Raises InvalidRequest: `context_length_exceeded`, an empty prompt, or a token id outside the vocabulary, and
    UnsupportedParameter for one that the model's engine can't carry out.
    """
    _check_carried(request, limits)
    max_tokens = _max_tokens(request, prompt_tokens, limits)
    temperature = _first(request.temperature, limits.defaults.temperature, 1.0)
    top_p = _first(request.top_p, limits.defaults.top_p, 1.0)
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=min(request.min_tokens or 0, max_tokens),
        ignore_eos=bool(request.ignore_eos),
        # A nucleus of mass 0 is the likeliest token alone: greedy, without asking each engine to know that.
        temperature=0.0 if top_p == 0 else temperature,
        top_p=top_p or 1.0,
        top_k=max(0, _first(request.top_k, limits.defaults.top_k, 0)),
        min_p=_first(request.min_p, limits.defaults.min_p, 0.0),
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        repetition_penalty=_first(request.repetition_penalty, limits.defaults.repetition_penalty, 1.0),
        logit_bias=_logit_bias(request, limits.vocab_size),
        # Engines seed with 63 bits; a seed that is not negative stays what it is.
        seed=None if request.seed is None else request.seed & (2**63 - 1),
        stop_token_ids=_stop_token_ids(request, limits),
        logprobs=_logprobs(request, limits),
        prompt_logprobs=request.prompt_token_logprobs,
    )


def _logprobs(request: GenerationFields, limits: ModelLimits) -> int | None:
    """Which of several answers are the likeliest is known by their tokens' too."""
    ranks = request.num_samples > request.num_choices
    if not limits.tells_logprobs and (ranks or request.token_logprobs is not None):
        name = "best_of" if ranks else "logprobs"
        message = f"Unsupported parameter: '{name}'. The engine of this model does not tell how likely tokens are."
        raise UnsupportedParameter(name, message)
    return 0 if ranks and request.token_logprobs is None else request.token_logprobs


def _check_carried(request: GenerationFields, limits: ModelLimits) -> None:
    for name, neutral in ENGINE_NEUTRAL.items():
        value = getattr(request, name)
        if limits.sampling is not None and name not in limits.sampling and value is not None and value not in neutral:
            raise UnsupportedParameter(name, f"Unsupported parameter: the engine of this model has no '{name}'.")


def _first(*values: Any) -> Any:
    """The first value that is not None."""
    return next(value for value in values if value is not None)


def _max_tokens(request: GenerationFields, prompt_tokens: int, limits: ModelLimits) -> int:
    """The explicit maximum, or the model's default clamped to the room that the prompt leaves."""
    if prompt_tokens == 0:
        raise InvalidRequest(f"The {request.PROMPT_NOUN} must have at least one token.", param=request.PROMPT_PARAM)
    explicit, least = request.explicit_max_tokens, request.min_tokens or 0
    if prompt_tokens + max(explicit or 0, least, 1) > limits.context:
        raise _too_long(request, prompt_tokens, max(explicit or 0, least), limits.context)
    if explicit is not None:
        return max(explicit, 1)  # an engine that computes a prompt samples a token behind it
    return min(max(limits.max_tokens_default, least), limits.context - prompt_tokens)


def _too_long(request: GenerationFields, prompt: int, completion: int, context: int) -> InvalidRequest:
    asked = f"{prompt + completion} tokens were requested: {prompt} in the {request.PROMPT_NOUN}"
    asked += f" and {completion} for the completion" if completion else ", which leaves no room for an answer"
    message = f"This model's maximum context length is {context} tokens, but {asked}."
    return InvalidRequest(message, param=request.PROMPT_PARAM, code="context_length_exceeded")


def _logit_bias(request: GenerationFields, vocab_size: int) -> dict[int, float]:
    bias = {int(token): value for token, value in (request.logit_bias or {}).items()}
    _check_vocabulary(bias, vocab_size, "logit_bias")
    return bias


def _stop_token_ids(request: GenerationFields, limits: ModelLimits) -> frozenset[int]:
    own = frozenset(request.stop_token_ids or ())
    _check_vocabulary(own, limits.vocab_size, "stop_token_ids")
    return own if request.ignore_eos else own | limits.eos_token_ids


def _check_vocabulary(tokens: Collection[int], vocab_size: int, param: str) -> None:
    highest = max(tokens, default=0)
    if highest >= vocab_size:
        message = f"'{param}': token id {highest} is outside this model's vocabulary of {vocab_size} tokens."
        raise InvalidRequest(message, param=param)
