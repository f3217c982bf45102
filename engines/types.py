"""The nouns that the rooms exchange. Plain slotted dataclasses: msgspec carries them between processes as they are.

Times are seconds of `time.monotonic()`, which all processes of one host share.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

import msgspec


class FinishReason(StrEnum):
    """How a request ended. Every accepted request gets exactly one."""

    STOP = "stop"  # a stop token or a stop string
    LENGTH = "length"  # max_tokens or the end of the context
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"
    ABORT = "abort"  # its client left or cancelled
    ERROR = "error"  # `OutputDelta.error` says why


class Continuation(StrEnum):
    """Which answers, begun by one engine, another of its kind can go on with from their token ids, as if it had given
    them itself."""

    NONE = "none"
    GREEDY = "greedy"  # those that depend on the tokens before alone: see `can_continue`
    SEEDED = "seeded"  # and those whose random numbers, penalties and bans follow from a seed and a position


class ErrorCode(StrEnum):
    """Why a request ended in FinishReason.ERROR."""

    OVERLOADED = "overloaded"  # the admission queue is full
    QUEUE_TIMEOUT = "queue_timeout"  # waited too long for its first step
    DEADLINE = "deadline_exceeded"  # out of time: its client has given up by now
    INVALID = "invalid_request"  # the engine can't run it, whatever its state
    INVALID_GRAMMAR = "invalid_grammar"  # it can't be compiled, or leaves no token to choose
    ENGINE_FAILED = "engine_failed"  # a step failed, or the worker died
    UNLOADED = "model_unloaded"  # the model is being taken out of service


class Task(StrEnum):
    """What a model is served for. One that generates may embed as well."""

    GENERATE = "generate"
    EMBED = "embed"  # a vector for a text
    SCORE = "score"  # a number for a pair of texts, read together: a cross-encoder


@dataclass(slots=True, frozen=True)
class RequestError:
    code: ErrorCode
    message: str  # for the client: no internals
    retry_after_ms: int | None = None


class GrammarKind(StrEnum):
    JSON_SCHEMA = "json_schema"
    LARK = "lark"  # as llguidance writes it: JSON schemas, regular expressions and special tokens in a grammar


@dataclass(slots=True, frozen=True)
class Grammar:
    """What an answer is held to: its tokens' bytes together are a text of this language."""

    kind: GrammarKind
    text: str


@dataclass(slots=True, frozen=True)
class SamplingParams:
    """How one request's tokens are chosen. Resolved: no field is left to a model's default.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1 and `min_p` 0 are off. Penalties as OpenAI defines them
    (presence, frequency: over generated tokens) and as CTRL does (repetition, arXiv:1909.05858: over prompt and
    generated tokens). `stop_token_ids` end the answer and are not sampled before `min_tokens` tokens.
    """

    max_tokens: int
    min_tokens: int = 0
    ignore_eos: bool = False  # the model's own ends of answers are not among `stop_token_ids`
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop_token_ids: frozenset[int] = frozenset()
    logprobs: int | None = None  # tell of each token, with so many of the likeliest in its place; None: nothing
    prompt_logprobs: int | None = None  # the same of the prompt's tokens, but for the first
    grammar: Grammar | None = None
    """A stop token that none of its texts has, as the model's own, is sampled only where one is complete. One that they
    may have ends the answer wherever it comes."""

    @property
    def is_greedy(self) -> bool:
        return self.temperature <= 0

    def can_continue(self, ability: Continuation) -> bool:
        """Whether an engine of this ability, given the tokens so far, samples what the first one would have.

        With GREEDY, those tokens are part of a prompt to it: penalties for what was generated alone would be lost.
        """
        if ability is Continuation.SEEDED:
            return self.is_greedy or self.seed is not None
        counts_output = bool(self.presence_penalty or self.frequency_penalty)
        return ability is Continuation.GREEDY and self.is_greedy and not counts_output


@dataclass(slots=True, frozen=True)
class TextSpan:
    """One of the texts that a request wants vectors of: how many of its prompt's tokens, and of these, in a pair of
    texts, how many come before the second one's."""

    num_tokens: int
    num_first: int


BACKGROUND_PRIORITY = 100  # from here on: work that nobody waits for, as of batches


@dataclass(slots=True, frozen=True)
class GenerationRequest:
    """One prompt to be continued, or, with `texts`, texts to be turned into vectors: then the prompt is all of them,
    one behind another, and max_tokens is 0.

    `request_id` is ours, never the client's. `account` is whom the queue is fair to. `cache_salt` separates the
    prefix cache's tenants. `deadline` is the moment after which nobody waits for the answer any more.

    `output_token_ids` begin the answer: another engine gave them, and this one goes on behind them. To `sampling`
    (max_tokens, min_tokens, penalties, the seed's random numbers) they count as output. They are not given again.
    `is_moved`: another engine had it and failed, with or without output, so it is no newcomer to its model.
    """

    request_id: str
    account: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    arrival: float
    deadline: float
    priority: int = 0  # a lower number starts first; from BACKGROUND_PRIORITY on it has steps of its own
    cache_salt: bytes = b""
    prompt_text: str = ""  # the same prompt, for engines with `EngineInfo.takes_text`
    output_token_ids: list[int] = field(default_factory=list)
    texts: list[TextSpan] = field(default_factory=list)
    is_moved: bool = False
    group: str = ""  # requests of one group have one prompt and one salt: it is computed once for all of them

    @property
    def is_background(self) -> bool:
        return self.priority >= BACKGROUND_PRIORITY

    @property
    def known_token_ids(self) -> list[int]:
        """What is there before this engine samples its first token."""
        return self.prompt_token_ids + self.output_token_ids


@dataclass(slots=True, frozen=True)
class TokenLogprobs:
    """How likely a token was, and those that were likeliest in its place, the likeliest first.

    Natural logarithms of the model's own probabilities: before temperature, penalties, bans and grammars. -inf is a
    probability of zero. The token itself is in `top` only if it is one of the likeliest.
    """

    logprob: float
    top: list[tuple[int, float]]


class OutputDelta(msgspec.Struct, omit_defaults=True):
    """What one step added to one request. The delta with a `finish_reason` is its last.

    One is made, sent and read for every token. A struct of msgspec is made in half the time of a dataclass, and what it
    does not say does not travel: a quarter of the bytes.

    An engine that only speaks text leaves `token_ids` empty. Its `text` ends before a stop token. Where a prompt's
    logprobs are asked for, each step tells those that it computed, before the first output or with it.
    """

    request_id: str
    token_ids: list[int] = []
    finish_reason: FinishReason | None = None
    error: RequestError | None = None
    cached_tokens: int = 0  # of the prompt; set on the first delta with output
    queue_seconds: float = 0.0  # from arrival to the first step; set on the first delta with output, and on an abort's
    computed_tokens: int = 0  # of the prompt, cached ones included; set on the delta of an abort, and with `vectors`
    text: str = ""
    num_text_tokens: int = 0  # that `text` stands for, by the engine's own count; 0: it does not say
    prompt_tokens: int = 0  # by the engine's own count; 0: it does not say
    vectors: dict[int, bytes] = {}  # by the index of a text: its float32s, little endian
    logprobs: list[TokenLogprobs] = []  # of `token_ids`, where they are asked for
    prompt_logprobs: list[TokenLogprobs] = []  # of its next tokens, from the second on

    @classmethod
    def failed(cls, request_id: str, error: RequestError) -> Self:
        """The one delta of a request that ends in this error."""
        return cls(request_id, finish_reason=FinishReason.ERROR, error=error)

    @property
    def has_output(self) -> bool:
        return bool(self.token_ids or self.text or self.num_text_tokens or self.vectors)


@dataclass(slots=True)
class Usage:
    """Token counts of one request. `cached_tokens` is a part of `prompt_tokens`, `reasoning_tokens` one of
    `completion_tokens`."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(slots=True, frozen=True)
class EngineConfig:
    """What an engine is built from. A limit of 0 lets the engine choose."""

    kind: str
    path: str = ""  # a local folder
    name: str = ""  # of the deployment, for messages
    url: str = ""  # of the server that runs the model, where another one does; then its own name for it, and version
    remote_model: str = ""
    remote_version: str = ""  # "": its policy
    dtype: str = "auto"  # auto | float32 | bfloat16
    quantize: str = "none"
    max_model_len: int = 0
    max_num_seqs: int = 64
    options: dict[str, Any] = field(default_factory=dict)  # of this engine kind alone
    load: bool = False  # it may be loaded where another server runs it: somebody wants it served, it is no restart
    task: str = "auto"  # auto | generate | embed | score; auto: as the model's files say
    pooling: str = "auto"  # auto | mean | cls | last
    matryoshka: bool = False  # the first components of a vector are an embedding too, whatever config.json says
    vocabulary: str = ""  # the file with the tokens' bytes (engines.vocabulary); "": no grammars


@dataclass(slots=True, frozen=True)
class VectorInfo:
    """What an engine makes of a text, or, for Task.SCORE, of a pair of them: `dim` numbers."""

    dim: int
    normalized: bool = True  # of length 1
    truncates: bool = False  # Matryoshka (arXiv:2205.13147): the first components alone are an embedding too
    dimensions: list[int] = field(default_factory=list)  # how many of them; empty: any number
    adds_special_tokens: bool = True  # it wants those that its tokenizer puts around a text


@dataclass(slots=True, frozen=True)
class EngineInfo:
    """What a loaded engine can hold. KV space is counted in blocks of `block_size` tokens.

    A StreamEngine plans its own steps and memory: of it, `block_size`, `num_blocks` and `token_budget` are 0.
    """

    max_model_len: int
    max_num_seqs: int
    vocab_size: int  # 0: it does not say
    block_size: int = 0
    num_blocks: int = 0
    token_budget: int = 0  # tokens a step, decodes and prefill chunks together
    steps_in_flight: int = 1  # 2: the next step is planned and submitted while one runs
    description: str = ""  # for people: dtype, device, threads
    takes_text: bool = False  # prompts as text, not as token ids
    max_batch_size: int = 0  # without in-flight batching: how many start, and end, together; 0: any, at any time
    max_padding_waste: float | None = None  # of such a batch, as a share of its real tokens; None: as ours
    sampling: frozenset[str] | None = None  # the fields of SamplingParams that it can carry out; None: all
    continuation: Continuation = Continuation.NONE  # of `GenerationRequest.output_token_ids`
    task: Task = Task.GENERATE
    vectors: VectorInfo | None = None  # of the other tasks; of Task.GENERATE where its engine embeds as well
    takes_grammars: bool = False
    tells_logprobs: bool = False  # of its own tokens and of a prompt's
