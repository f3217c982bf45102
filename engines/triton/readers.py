"""From the tensors of one request's responses to its deltas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from engines.triton.tensors import Value
from engines.types import FinishReason, GenerationRequest, OutputDelta

Outputs = Mapping[str, Sequence[Value]]
HALF_A_CHARACTER = "\ufffd"  # what tokens decode to that end within one
_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}
_NOT_YET = ("", "none")


class Reader(Protocol):
    """Of one request."""

    def read(self, outputs: Outputs) -> OutputDelta:
        """What a response adds. It has a finish reason when nothing that may follow counts."""

    def last(self) -> OutputDelta:
        """After the last response."""


class TextReader:
    """Text as it comes, or the text so far, with each response. `prompt`: what the answer may begin with, and loses."""

    def __init__(self, request: GenerationRequest, *, is_cumulative: bool, prompt: str) -> None:
        self._request_id = request.request_id
        self._max_tokens = request.sampling.max_tokens
        self._is_cumulative = is_cumulative
        self._prompt = prompt
        self._num_sent = 0  # characters
        self._held = ""  # of the text so far
        self._num_tokens = self._num_responses = 0
        self._reason: FinishReason | None = None

    def read(self, outputs: Outputs) -> OutputDelta:
        self._reason = _reason(outputs) or self._reason
        delta = OutputDelta(
            self._request_id,
            text=self._new_text(_text(outputs, "text_output")),
            num_text_tokens=_integer(outputs, "num_output_tokens"),
            prompt_tokens=_integer(outputs, "num_input_tokens"),
        )
        self._num_tokens += delta.num_text_tokens
        self._num_responses += 1
        return delta

    def _new_text(self, text: str) -> str:
        if not self._num_responses:
            text = text.removeprefix(self._prompt)
        if not self._is_cumulative:
            return text
        certain = text.rstrip(HALF_A_CHARACTER)  # the next token may complete it
        new, self._held = certain[self._num_sent :], text[len(certain) :]
        self._num_sent = max(self._num_sent, len(certain))
        return new

    def last(self) -> OutputDelta:
        """Who gives no reason has stopped, unless there are as many tokens as were asked for; some give a token with
        every response and no count."""
        is_full = max(self._num_tokens, self._num_responses) >= self._max_tokens
        reason = self._reason or (FinishReason.LENGTH if is_full else FinishReason.STOP)
        return OutputDelta(self._request_id, text=self._held, finish_reason=reason)


class TokenReader:
    """Token ids as they come. A stop token ends the answer and is its last one, if the model gives it."""

    def __init__(self, request: GenerationRequest, *, may_repeat_prompt: bool) -> None:
        self._request = request
        self._prompt = request.prompt_token_ids if may_repeat_prompt else []
        self._num_tokens = 0

    def read(self, outputs: Outputs) -> OutputDelta:
        tokens = [int(value) for value in outputs["output_ids"]]
        tokens = tokens[: _integer(outputs, "sequence_length", len(tokens))]
        if self._prompt and tokens[: len(self._prompt)] == self._prompt:
            tokens = tokens[len(self._prompt) :]
        delta = OutputDelta(self._request.request_id)
        for token in tokens:
            delta.token_ids.append(token)
            self._num_tokens += 1
            if self._is_stop(token):
                delta.finish_reason = FinishReason.STOP
                break
        return delta

    def _is_stop(self, token: int) -> bool:
        sampling = self._request.sampling
        return token in sampling.stop_token_ids and self._num_tokens >= sampling.min_tokens

    def last(self) -> OutputDelta:
        is_full = self._num_tokens >= self._request.sampling.max_tokens
        reason = FinishReason.LENGTH if is_full else FinishReason.STOP
        return OutputDelta(self._request.request_id, finish_reason=reason)


def _text(outputs: Outputs, name: str) -> str:
    return b"".join(value for value in outputs.get(name, ()) if isinstance(value, bytes)).decode(errors="replace")


def _integer(outputs: Outputs, name: str, default: int = 0) -> int:
    return int(next(iter(outputs.get(name, ())), default))


def _reason(outputs: Outputs) -> FinishReason | None:
    word = _text(outputs, "finish_reason").lower().rpartition(".")[2]
    return None if word in _NOT_YET else _REASONS.get(word, FinishReason.STOP)
