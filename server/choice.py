"""One choice of a running request: from its sequence's deltas to its text."""

from __future__ import annotations

from dataclasses import dataclass

from batching.client import Receiver
from engines.types import FinishReason, OutputDelta
from server.job import PreparedPrompt
from server.text.stream import TextPiece, TextStream


@dataclass(slots=True, frozen=True)
class Piece:
    """What became known of one choice: text to send, and how it ended if it did."""

    index: int
    text: str
    finish_reason: FinishReason | None = None


@dataclass(slots=True)
class Choice:
    """One sequence of a request, from its deltas to its text."""

    index: int
    prompt: PreparedPrompt
    receiver: Receiver
    stream: TextStream
    num_prompt: int = 0  # set with the first output
    num_output: int = 0
    num_cached: int = 0
    num_computed: int = 0  # of the prompt
    queue_seconds: float | None = None
    finish_reason: FinishReason | None = None

    @property
    def is_done(self) -> bool:
        """It ended, and not in an error."""
        return self.finish_reason not in (None, FinishReason.ERROR)

    def take(self, delta: OutputDelta) -> Piece:
        self.count(delta)
        if delta.error is None:
            return self._piece(delta)
        self.finish_reason = FinishReason.ERROR
        return Piece(self.index, self._add(delta).text)

    def count(self, delta: OutputDelta) -> None:
        """What the engine did is charged, whether somebody reads it or not."""
        if delta.has_output and not self.num_prompt:
            self.num_cached, self.queue_seconds = delta.cached_tokens, delta.queue_seconds
            self.num_prompt = self.num_computed = delta.prompt_tokens or len(self.prompt.token_ids)
        self.num_output += self._num_tokens(delta)
        self.num_computed = max(self.num_computed, delta.computed_tokens)

    def _num_tokens(self, delta: OutputDelta) -> int:
        return (
            len(delta.token_ids) or delta.num_text_tokens or (self.prompt.count_tokens(delta.text) if delta.text else 0)
        )

    def _add(self, delta: OutputDelta) -> TextPiece:
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

    def _piece(self, delta: OutputDelta) -> Piece:
        piece = self._add(delta)
        text = piece.text
        self.finish_reason = FinishReason.STOP if piece.stopped else delta.finish_reason
        if delta.finish_reason is not None and not piece.stopped:
            last = self.stream.finish()
            text += last.text
            if last.stopped:
                self.finish_reason = FinishReason.STOP
        return Piece(self.index, text, self.finish_reason)
