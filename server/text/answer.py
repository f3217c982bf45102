"""One answer as its client reads it: words, reasoning and tool calls, from tokens or an engine's text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from engines.types import TokenLogprobs
from server.text.formats.events import Arguments, CallBegin, Content, Event, Reader, Reasoning, merged
from server.text.logprobs import Part, TokenTeller
from server.text.stream import TextPiece, TextStream


@dataclass(slots=True, frozen=True)
class CallPiece:
    """A part of tool call `index`. Its first has `id` and `name`; the `arguments` of all are its arguments."""

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None


class AnswerPiece(msgspec.Struct, frozen=True):
    text: str = ""
    reasoning: str = ""
    calls: tuple[CallPiece, ...] = ()
    stop: str | None = None  # this stop string ended it

    @property
    def stopped(self) -> bool:
        """This is the last piece."""
        return self.stop is not None

    @property
    def is_empty(self) -> bool:
        return not (self.text or self.reasoning or self.calls)


class Rewriter(Protocol):
    """What a client reads in the place of what the model wrote."""

    def of(self, piece: AnswerPiece) -> AnswerPiece: ...

    def finish(self) -> AnswerPiece:
        """At the end of an answer that no stop string has ended: what was held back."""


@dataclass(slots=True)
class AnswerStream:
    """`reader` knows the model's format; None where the answer is its text. `max_calls` bounds what is told of.
    `tokens` learns which words are the answer's, where somebody wants to know of their tokens.
    `rewriter` comes last: nothing leaves without it.

    Words and reasoning of one piece keep their order: reasoning comes first in every format, calls last.
    """

    text: TextStream
    reader: Reader | None = None
    new_call_id: Callable[[], str] = lambda: ""
    max_calls: int | None = None
    tokens: TokenTeller | None = None
    rewriter: Rewriter | None = None
    num_reasoning_tokens: int = 0
    num_calls: int = field(default=0, init=False)

    def echo(self, text: str) -> AnswerPiece:
        """What stands before the answer, as the model was shown it; no stop string counts in it."""
        if self.tokens is not None:
            self.tokens.let_out_prompt()
        return self._rewritten(AnswerPiece(text))

    def add(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs] = ()) -> AnswerPiece:
        """`logprobs` of all of them, if there are `tokens`."""
        if self.tokens is None:
            return self._rewritten(self._add(token_ids))
        pieces = []
        for token_id, logprob in zip(token_ids, logprobs, strict=True):  # one by one, to tell who made which text
            self.tokens.add(token_id, logprob)
            pieces.append(self._add([token_id]))
        return self._rewritten(joined(pieces))

    def add_text(self, text: str, num_tokens: int) -> AnswerPiece:
        return self._rewritten(self._add_text(text, num_tokens))

    def finish(self) -> AnswerPiece:
        piece = self._rewritten(self._finish())
        return piece if self.rewriter is None else joined([piece, self.rewriter.finish()])

    def _rewritten(self, piece: AnswerPiece) -> AnswerPiece:
        return piece if self.rewriter is None else self.rewriter.of(piece)

    def _add(self, token_ids: Sequence[int]) -> AnswerPiece:
        if self.reader is None:
            return self._plain(self.text.add(token_ids))
        pieces = []
        for token_id in token_ids:  # one by one, to tell which of them reason
            self.num_reasoning_tokens += self.reader.is_reasoning
            pieces.append(self._read(self.text.add([token_id]), self.reader))
        return joined(pieces)

    def _add_text(self, text: str, num_tokens: int) -> AnswerPiece:
        piece = self.text.add_text(text, num_tokens)
        if self.reader is None:
            return self._plain(piece)
        self.num_reasoning_tokens += num_tokens if self.reader.is_reasoning else 0
        return self._read(piece, self.reader)

    def _finish(self) -> AnswerPiece:
        piece = self.text.finish()
        if self.reader is None:
            return self._plain(piece)
        return joined([self._read(piece, self.reader), self._end(self.reader, piece.stop)])

    def _plain(self, piece: TextPiece) -> AnswerPiece:
        if self.tokens is not None:
            self.tokens.read(piece.text)
            self.tokens.let_out(piece.text)
        return AnswerPiece(piece.text, stop=piece.stop)

    def _read(self, piece: TextPiece, reader: Reader) -> AnswerPiece:
        if self.tokens is not None:
            self.tokens.read(piece.text)
        read = self._tell(reader.feed(piece.text), piece.stop, reader)
        return joined([read, self._end(reader, piece.stop)]) if piece.stopped else read

    def _end(self, reader: Reader, stop: str | None) -> AnswerPiece:
        return self._tell(reader.finish(), stop)

    def _tell(self, events: Sequence[Event], stop: str | None, holding: Reader | None = None) -> AnswerPiece:
        """`holding`: what it holds back comes behind these events; None: nothing does."""
        text, reasoning, calls = "", "", []
        self._assign(events, 0 if holding is None else holding.num_held)
        for event in merged(events):
            match event:
                case Content(words):
                    text += words
                case Reasoning(words):
                    reasoning += words
                case CallBegin(name):
                    self.num_calls += 1
                    if self._is_told:
                        calls.append(CallPiece(self.num_calls - 1, "", self.new_call_id(), name))
                case Arguments(words):
                    if self._is_told:
                        calls.append(CallPiece(self.num_calls - 1, words))
        return AnswerPiece(text, reasoning, tuple(calls), stop)

    def _assign(self, events: Sequence[Event], num_held: int) -> None:
        if self.tokens is not None:
            written = (event for event in events if not isinstance(event, CallBegin))
            parts = [Part(event.text, isinstance(event, Content)) for event in written]
            self.tokens.assign(parts, num_held)

    @property
    def _is_told(self) -> bool:
        return self.max_calls is None or self.num_calls <= self.max_calls


def joined(pieces: Sequence[AnswerPiece]) -> AnswerPiece:
    if len(pieces) == 1:
        return pieces[0]
    return AnswerPiece(
        "".join(piece.text for piece in pieces),
        "".join(piece.reasoning for piece in pieces),
        tuple(call for piece in pieces for call in piece.calls),
        next((piece.stop for piece in pieces if piece.stopped), None),
    )
