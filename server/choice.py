"""One choice of a running request: from its sequence's deltas to its text."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from engines.types import FinishReason, OutputDelta
from server.job import PreparedPrompt
from server.text.answer import AnswerPiece, AnswerStream, CallPiece, joined
from server.wire.common import Answer, Call


@dataclass(slots=True, frozen=True)
class Piece:
    """What became known of one choice: text to send, or vectors by the index of a text, and how it ended if it did
    (`stop`: at this stop string).

    `is_anew`: it begins again, and what came of it before is void. Only of whole answers, whose clients saw none of it.
    """

    index: int
    text: str
    finish_reason: FinishReason | None = None
    reasoning: str = ""
    calls: tuple[CallPiece, ...] = ()
    is_anew: bool = False
    vectors: dict[int, bytes] = field(default_factory=dict)
    stop: str | None = None

    @property
    def is_empty(self) -> bool:
        return not (self.text or self.reasoning or self.calls or self.is_anew) and self.finish_reason is None


class WholeChoice:
    """One choice's pieces put together."""

    def __init__(self) -> None:
        self._finish_reason: FinishReason | None = None
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, list[CallPiece]] = {}
        self._stop: str | None = None

    def add(self, piece: Piece) -> None:
        if piece.is_anew:
            for parts in (self._texts, self._reasoning, self._calls):
                parts.clear()
        self._finish_reason = piece.finish_reason
        self._texts.append(piece.text)
        self._reasoning.append(piece.reasoning)
        self._stop = piece.stop
        for call in piece.calls:
            self._calls.setdefault(call.index, []).append(call)

    def answer(self) -> Answer:
        """Of a choice that has ended."""
        assert self._finish_reason is not None
        calls = [
            Call(parts[0].id or "", parts[0].name or "", "".join(part.arguments for part in parts))
            for parts in self._calls.values()
        ]
        reasoning = "".join(self._reasoning)
        return Answer("".join(self._texts), self._finish_reason, reasoning, tuple(calls), self._stop)


@dataclass(slots=True)
class Choice:
    """One sequence of a request, whichever engines it runs on."""

    index: int
    prompt: PreparedPrompt
    stream: AnswerStream
    token_ids: array[int] = field(default_factory=lambda: array("i"))  # of the answer; none from an engine of text
    num_prompt: int = 0  # set with the first output, and so is what is cached of it
    num_output: int = 0
    num_cached: int = 0
    num_computed: int = 0  # of the prompt
    submitted_after: float = 0.0  # seconds from the request's arrival to its latest submission
    queue_seconds: float | None = None  # from the request's arrival to the first step of the engine that began it
    finish_reason: FinishReason | None = None

    @property
    def has_output(self) -> bool:
        return self.num_prompt > 0

    @property
    def is_done(self) -> bool:
        """It ended, and not in an error."""
        return self.finish_reason not in (None, FinishReason.ERROR)

    def take(self, delta: OutputDelta) -> Piece:
        """An engine's error is no end yet, unless nothing was missing: the answer may go on elsewhere."""
        self.count(delta)
        piece = self._add(delta)
        reason = delta.finish_reason if delta.error is None else self._end_without_engine()
        if reason is not None and not piece.stopped:
            piece = joined([piece, self.stream.finish()])
        reason = FinishReason.STOP if piece.stopped else reason
        calls_end = reason is FinishReason.STOP and self.stream.num_calls > 0
        self.finish_reason = FinishReason.TOOL_CALLS if calls_end else reason
        return Piece(
            self.index,
            piece.text,
            self.finish_reason,
            piece.reasoning,
            piece.calls,
            vectors=delta.vectors,
            stop=piece.stop,
        )

    def _end_without_engine(self) -> FinishReason | None:
        """An engine may give its last token before it says that it was the last."""
        is_full = bool(self.token_ids) and len(self.token_ids) >= self.prompt.sampling.max_tokens
        return FinishReason.LENGTH if is_full else None

    def begin_again(self) -> None:
        """What the failed engine gave is dropped, and charged to nobody."""
        self.stream = self.prompt.new_stream()
        self.token_ids = array("i")
        self.num_prompt = self.num_output = self.num_cached = self.num_computed = 0

    def count(self, delta: OutputDelta) -> None:
        """What the engine did is charged, whether somebody reads it or not. The prompt is charged once: an engine that
        goes on with the answer computes it again, and that is no business of the client's."""
        if delta.has_output and not self.num_prompt:
            self.num_cached = delta.cached_tokens
            self.queue_seconds = self.submitted_after + delta.queue_seconds
            self.num_prompt = self.num_computed = delta.prompt_tokens or len(self.prompt.token_ids)
        if delta.vectors:  # of some of the texts
            self.num_prompt = self.num_computed = delta.computed_tokens
        self.num_output += self._num_tokens(delta)
        self.token_ids.extend(delta.token_ids)
        # To an engine that goes on with an answer, the tokens before are part of the prompt.
        self.num_computed = max(self.num_computed, min(delta.computed_tokens, len(self.prompt.token_ids)))

    def _num_tokens(self, delta: OutputDelta) -> int:
        return (
            len(delta.token_ids) or delta.num_text_tokens or (self.prompt.count_tokens(delta.text) if delta.text else 0)
        )

    def _add(self, delta: OutputDelta) -> AnswerPiece:
        if delta.text:
            return self.stream.add_text(delta.text, self._num_tokens(delta))
        token_ids = delta.token_ids
        if (
            token_ids
            and delta.finish_reason is FinishReason.STOP
            and token_ids[-1] in self.prompt.sampling.stop_token_ids
        ):
            token_ids = token_ids[:-1]  # the stop token ends the text without being part of it
        return self.stream.add(token_ids)
