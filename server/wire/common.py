"""What the endpoint families share: limits, validators, unsupported parameters, and the shapes of every answer."""

from __future__ import annotations

import json
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec
from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic_core import PydanticCustomError

from engines.types import FinishReason, Usage
from server.errors import UnsupportedParameter
from server.text.answer import CallPiece
from server.text.logprobs import ToldToken

MAX_PARTS = 8192  # content parts, tool calls and annotations, of all messages together
MAX_PROMPTS = 64
MAX_CHOICES = 16  # n
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_STOP_TOKENS = 64
MAX_LOGIT_BIAS = 1024
MAX_BEST_OF = 20
MAX_TOP_LOGPROBS = 20
MAX_COMPLETION_LOGPROBS = 5
MAX_METADATA = 16
MAX_INT = 2**31 - 1  # of every count; a larger number only makes an error message longer

# Parameters that would change the answer and are not honoured yet, with the values besides null that leave it as it
# is. The first offender in this order is the one that the error names.
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "suffix": ("",),
    "prompt_logprobs": (),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "verbosity": ("medium",),
    "web_search_options": (),
    "moderation": (),
    "store": (False,),
}


class RequestModel(BaseModel):
    """A part of a request's body. Strict about types as OpenAI is: no "1" for 1, no true for 1, no NaN.

    What becomes of its fields: `NEUTRAL` are those that are refused, with the values that are not (`refuse_unsupported`
    does it), `NO_EFFECT` those that can't change the answer and are used for nothing. All others are honoured, those in
    `WHERE` under that condition; elsewhere they are refused. docs/compatibility.md is made of this.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())
    NEUTRAL: ClassVar[Mapping[str, tuple[object, ...]]] = NEUTRAL
    NO_EFFECT: ClassVar[frozenset[str]] = frozenset()
    WHERE: ClassVar[Mapping[str, str]] = {}


class StreamOptions(RequestModel):
    NEUTRAL: ClassVar[Mapping[str, tuple[object, ...]]] = {"include_obfuscation": (False,)}

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


def refuse_unsupported(request: RequestModel) -> None:
    """Raise UnsupportedParameter for the first parameter that would change the answer and is not honoured."""
    given = request.model_fields_set
    for name, neutral in request.NEUTRAL.items():
        if name in given and not _is_neutral(getattr(request, name), neutral):
            raise UnsupportedParameter(name, _unsupported(name, neutral))


def _is_neutral(value: object, neutral: tuple[object, ...]) -> bool:
    # The types are compared too: in Python 0 == False, on the wire they are different requests.
    return value is None or any(type(value) is type(other) and value == other for other in neutral)


def _unsupported(name: str, neutral: tuple[object, ...]) -> str:
    accepted = " or ".join(json.dumps(value) for value in (*neutral, None))
    return f"Unsupported parameter: '{name}'. Leave it out, or send {accepted}."


def within(low: float, high: float, *, above: bool = False) -> Callable[[Any], Any]:
    """A pydantic validator: the value lies in [low, high], or in (low, high] with `above`."""
    text = f"greater than {low} and at most {high}" if above else f"between {low} and {high}"

    def check(value: float) -> float:
        if low < value <= high or (value == low and not above):
            return value
        raise PydanticCustomError("out_of_range", "Expected a number {range}", {"range": text})

    return check


def at_least(low: int) -> Callable[[Any], Any]:
    """A pydantic validator for counts, which end at MAX_INT."""

    def check(value: int) -> int:
        if low <= value <= MAX_INT:
            return value
        raise PydanticCustomError("out_of_range", "Expected an integer from {low} up", {"low": low})

    return check


def at_most(size: int) -> BeforeValidator:
    """Refuses a longer list or object before its items are validated; pydantic's own max_length comes after them."""

    def check(value: Any) -> Any:
        if isinstance(value, list | dict) and len(value) > size:
            raise PydanticCustomError("too_many", "Expected at most {size} items", {"size": size})
        return value

    return BeforeValidator(check)


# Answers. OpenAI's shapes, in OpenAI's order of keys.


@dataclass(slots=True, frozen=True)
class ResponseHead:
    """What every chunk of one answer repeats. `model` is the resolved `name@version`."""

    id: str
    created: int  # Unix seconds
    model: str
    fingerprint: str


@dataclass(slots=True, frozen=True)
class Call:
    """A tool call of an answer; `arguments` is JSON as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(slots=True, frozen=True)
class Answer:
    """One finished choice."""

    text: str
    finish_reason: FinishReason
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    stop: str | None = None  # the stop string that ended it
    tokens: tuple[ToldToken, ...] | None = None  # None: nobody asked for them
    mean_logprob: float | None = None  # of all its tokens, where they are known


def new_id(prefix: str) -> str:
    """A response id, such as new_id("chatcmpl") or new_id("resp_"). Ours, unguessable, never taken from the client."""
    return f"{prefix}{'' if prefix.endswith('_') else '-'}{secrets.token_hex(16)}"


class PromptTokensDetails(msgspec.Struct, frozen=True):
    cached_tokens: int = 0
    audio_tokens: int = 0


class CompletionTokensDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class UsageBody(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


def usage_body(usage: Usage) -> UsageBody:
    return UsageBody(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.total_tokens,
        PromptTokensDetails(usage.cached_tokens),
        CompletionTokensDetails(usage.reasoning_tokens),
    )


class Envelope(msgspec.Struct, omit_defaults=True, frozen=True):
    """The keys around `choices` and `usage`, of a whole answer and of a chunk alike."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    request_id: str | None = None  # the client's own, on a WebSocket that carries several requests


class ErrorBody(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(msgspec.Struct, frozen=True):
    """What `APIError.envelope` makes, for those who want to know its shape."""

    error: ErrorBody


def answer_type(name: str, choice: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """The shape of what `whole` writes in pieces."""
    fields: list[tuple[str, Any]] = [("choices", list[choice]), ("usage", UsageBody)]  # type: ignore[valid-type]
    return msgspec.defstruct(name, fields, bases=(Envelope,), kw_only=True, frozen=True)


encode = msgspec.json.Encoder().encode


def whole(kind: str, head: ResponseHead, choices: Sequence[msgspec.Struct], usage: Usage) -> bytes:
    """The JSON of an answer that is not streamed."""
    encoded = b",".join(map(encode, choices))
    return _opening(kind, head, None) + encoded + b'],"usage":' + encode(usage_body(usage)) + b"}"


def _opening(kind: str, head: ResponseHead, request_id: str | None) -> bytes:
    """An answer's JSON up to and with `"choices":[`."""
    body = Envelope(head.id, kind, head.created, head.model, head.fingerprint, request_id)
    return encode(body)[:-1] + b',"choices":['


class ChunkEncoder(ABC):
    """Builds the chunks of one streamed answer: JSON without framing, the same bytes for SSE and WebSocket.

    Nearly every token is a chunk, so all of it but the text is encoded once, for each of the answer's `choices`.
    """

    kind: ClassVar[str]
    HOLE = "\0"  # stands for the text while a choice, which holds no other strings of ours or the client's, is encoded

    def __init__(
        self, head: ResponseHead, *, include_usage: bool = False, choices: int = 1, request_id: str | None = None
    ) -> None:
        self._head = _opening(self.kind, head, request_id)
        self._tail = b'],"usage":null}' if include_usage else b"]}"
        self._frames = [self._frame(index) for index in range(choices)]

    @abstractmethod
    def _text_choice(self, index: int, text: str) -> msgspec.Struct: ...

    @abstractmethod
    def _last_choice(self, index: int, reason: FinishReason) -> msgspec.Struct: ...

    def role_chunk(self, index: int = 0) -> bytes:
        """What opens a choice; b"" where the family has no such chunk."""
        return b""

    def told_chunk(self, text: str, tokens: Sequence[ToldToken], index: int = 0) -> bytes:
        """Text together with what is told of its tokens."""
        raise NotImplementedError

    def text_chunk(self, text: str, index: int = 0) -> bytes:
        before, after = self._frames[index]
        return before + encode(text) + after

    def reasoning_chunk(self, text: str, index: int = 0) -> bytes:
        """What a model thought before it answered, in the families that tell of it."""
        raise NotImplementedError

    def call_chunk(self, call: CallPiece, index: int = 0) -> bytes:
        """A part of a tool call, in the families that have them."""
        raise NotImplementedError

    def finish_chunk(self, reason: FinishReason, index: int = 0) -> bytes:
        """The last chunk of a choice. `reason` is one that OpenAI knows: an abort or an error is not a finish."""
        assert reason not in (FinishReason.ABORT, FinishReason.ERROR)
        return self._chunk(self._last_choice(index, reason))

    def usage_chunk(self, usage: Usage) -> bytes:
        """The stream's last chunk, sent only with `include_usage`."""
        return self._head + b'],"usage":' + encode(usage_body(usage)) + b"}"

    def _chunk(self, choice: msgspec.Struct) -> bytes:
        return self._head + encode(choice) + self._tail

    def _frame(self, index: int) -> tuple[bytes, bytes]:
        before, after = self._chunk(self._text_choice(index, self.HOLE)).rsplit(encode(self.HOLE), 1)
        return before, after
