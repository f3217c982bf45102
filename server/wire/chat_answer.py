"""What `/v1/chat/completions` answers: one object, or chunks."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from engines.types import FinishReason, Usage
from server.text.answer import CallPiece
from server.text.logprobs import ToldToken
from server.wire.common import Answer, Call, ChunkEncoder, ResponseHead, answer_type, whole
from server.wire.logprobs import ChoiceLogprobs, chat_logprobs

KIND, CHUNK_KIND = "chat.completion", "chat.completion.chunk"
FUNCTION_CALL = "function_call"  # the reason that answers to the legacy `functions` end for


class CalledFunction(msgspec.Struct, frozen=True):
    name: str
    arguments: str


class ToolCallBody(msgspec.Struct, frozen=True):
    id: str
    function: CalledFunction
    type: str = "function"


class AnswerMessage(msgspec.Struct, frozen=True, kw_only=True):
    role: str = "assistant"
    content: str | None
    refusal: None = None
    annotations: tuple[()] = ()
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[ToolCallBody] | msgspec.UnsetType = msgspec.UNSET
    function_call: CalledFunction | msgspec.UnsetType = msgspec.UNSET


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: str


ChatCompletionBody = answer_type("ChatCompletion", Choice)


class FunctionDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    name: str | msgspec.UnsetType = msgspec.UNSET
    arguments: str | msgspec.UnsetType = msgspec.UNSET


class ToolCallDelta(msgspec.Struct, frozen=True):
    index: int
    function: FunctionDelta
    id: str | msgspec.UnsetType = msgspec.UNSET
    type: str | msgspec.UnsetType = msgspec.UNSET


class Delta(msgspec.Struct, frozen=True, omit_defaults=True):
    role: str | msgspec.UnsetType = msgspec.UNSET
    content: str | msgspec.UnsetType = msgspec.UNSET
    refusal: msgspec.UnsetType | None = msgspec.UNSET
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: tuple[ToolCallDelta, ...] | msgspec.UnsetType = msgspec.UNSET
    function_call: FunctionDelta | msgspec.UnsetType = msgspec.UNSET


class ChunkChoice(msgspec.Struct, frozen=True):
    index: int
    delta: Delta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: str | None = None


def chat_completion(head: ResponseHead, answers: Sequence[Answer], usage: Usage, *, is_legacy: bool = False) -> bytes:
    """The whole answer's JSON; `usage` is of all choices together. `is_legacy`: to a request with `functions`."""
    choices = [
        Choice(
            index=i,
            message=_message(answer, is_legacy),
            logprobs=chat_logprobs(answer.tokens),
            finish_reason=_reason(answer.finish_reason, is_legacy),
        )
        for i, answer in enumerate(answers)
    ]
    return whole(KIND, head, choices, usage)


def _message(answer: Answer, is_legacy: bool) -> AnswerMessage:
    calls = [_call(call) for call in answer.calls]
    return AnswerMessage(
        content=answer.text if answer.text or not calls else None,
        reasoning_content=answer.reasoning or msgspec.UNSET,
        tool_calls=calls if calls and not is_legacy else msgspec.UNSET,
        function_call=calls[0].function if calls and is_legacy else msgspec.UNSET,
    )


def _call(call: Call) -> ToolCallBody:
    return ToolCallBody(call.id, CalledFunction(call.name, call.arguments))


def _reason(reason: FinishReason, is_legacy: bool) -> str:
    return FUNCTION_CALL if is_legacy and reason is FinishReason.TOOL_CALLS else reason


class ChatChunkEncoder(ChunkEncoder):
    kind = CHUNK_KIND
    is_legacy = False

    def role_chunk(self, index: int = 0) -> bytes:
        return self._chunk(ChunkChoice(index, Delta(role="assistant", content="", refusal=None)))

    def told_chunk(self, text: str, tokens: Sequence[ToldToken], index: int = 0) -> bytes:
        return self._chunk(ChunkChoice(index, Delta(content=text), chat_logprobs(tokens)))

    def reasoning_chunk(self, text: str, index: int = 0) -> bytes:
        return self._chunk(ChunkChoice(index, Delta(reasoning_content=text)))

    def call_chunk(self, call: CallPiece, index: int = 0) -> bytes:
        return self._chunk(ChunkChoice(index, self._call_delta(call)))

    def _call_delta(self, call: CallPiece) -> Delta:
        is_first = call.id is not None
        function = FunctionDelta(call.name if call.name is not None else msgspec.UNSET, call.arguments)
        if self.is_legacy:
            return Delta(function_call=function)
        delta = ToolCallDelta(
            call.index,
            function,
            call.id if call.id is not None else msgspec.UNSET,
            "function" if is_first else msgspec.UNSET,
        )
        return Delta(tool_calls=(delta,))

    def _text_choice(self, index: int, text: str) -> ChunkChoice:
        return ChunkChoice(index, Delta(content=text))

    def _last_choice(self, index: int, reason: FinishReason) -> ChunkChoice:
        return ChunkChoice(index, Delta(), finish_reason=_reason(reason, self.is_legacy))


class LegacyChatChunkEncoder(ChatChunkEncoder):
    """For requests with `functions`."""

    is_legacy = True


def chunk_encoder(is_legacy: bool) -> type[ChatChunkEncoder]:
    return LegacyChatChunkEncoder if is_legacy else ChatChunkEncoder
