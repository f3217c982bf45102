"""How what a client reads differs from what the model wrote: personal data is restored, then terms are masked.

It comes behind stop strings and behind the reader of the model's format: neither a marker nor a stop string is hidden
or made by it, and a term is found wherever the client puts the text together, whatever stood between its parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from server.text.answer import AnswerPiece, CallPiece
from server.text.content_filter import ContentFilter
from server.text.json_strings import Channel, JsonStrings
from server.text.pii.placeholders import Placeholders
from server.text.pii.restorer import Restorer


class Chain:
    """One channel behind another."""

    def __init__(self, first: Channel, second: Channel) -> None:
        self._first = first
        self._second = second

    def feed(self, text: str) -> str:
        return self._second.feed(self._first.feed(text))

    def flush(self) -> str:
        return self._second.feed(self._first.flush()) + self._second.flush()


@dataclass(slots=True, frozen=True)
class Rewriting:
    """What is done to the answers of one request. `names` are the functions that the client itself named."""

    content_filter: ContentFilter = field(default_factory=ContentFilter)
    placeholders: Placeholders | None = None
    content_is_json: bool = False
    names: frozenset[str] = frozenset()

    @property
    def alters(self) -> bool:
        """Whether a client may read another text than the model wrote."""
        return self.content_filter.masks_output or bool(self.placeholders)

    def rewriter(self) -> AnswerRewriter | None:
        """For one answer; None where it is left as it is."""
        return AnswerRewriter(self) if self.alters else None

    def text(self) -> Channel:
        restorer = Restorer(self.placeholders) if self.placeholders else None
        mask = self.content_filter.output_mask()
        if restorer is not None and mask is not None:
            return Chain(restorer, mask)
        channel = restorer or mask
        assert channel is not None, "see `alters`"
        return channel

    def json(self) -> Channel:
        return JsonStrings(self.text, self.content_filter.bare_mask())

    def content(self) -> Channel:
        return self.json() if self.content_is_json else self.text()

    def stop(self, stop: str | None) -> str | None:
        """As the client gave it."""
        return stop if stop is None or not self.placeholders else whole(Restorer(self.placeholders), stop)

    def name(self, name: str) -> str:
        return name if name in self.names else whole(self.text(), name)


class AnswerRewriter:
    """One answer's texts, each in a channel of its own: a client reads each of them as a whole.

    What is held back of one is let out when another goes on, so that they keep their order.
    """

    def __init__(self, rewriting: Rewriting) -> None:
        self._rewriting = rewriting
        self._reasoning = rewriting.text()
        self._content = rewriting.content()
        self._call: tuple[int, Channel] | None = None  # the arguments of the latest call

    def of(self, piece: AnswerPiece) -> AnswerPiece:
        """A piece that is the answer's last has all that was held back."""
        reasoning = self._reasoning.feed(piece.reasoning) if piece.reasoning else ""
        if piece.text or piece.calls or piece.stopped:
            reasoning += self._reasoning.flush()
        text = self._content.feed(piece.text) if piece.text else ""
        if piece.reasoning or piece.calls or piece.stopped:
            text += self._content.flush()
        calls = [told for call in piece.calls for told in self._told(call)]
        if piece.stopped:
            calls += self._end_call()
        return AnswerPiece(text, reasoning, tuple(calls), self._rewriting.stop(piece.stop))

    def finish(self) -> AnswerPiece:
        return AnswerPiece(self._content.flush(), self._reasoning.flush(), tuple(self._end_call()))

    def _told(self, call: CallPiece) -> Iterator[CallPiece]:
        if self._call is None or self._call[0] != call.index:
            yield from self._end_call()
            self._call = (call.index, self._rewriting.json())
        arguments = self._call[1].feed(call.arguments)
        if call.id is not None:
            yield CallPiece(call.index, arguments, call.id, self._rewriting.name(call.name or ""))
        elif arguments:
            yield CallPiece(call.index, arguments)

    def _end_call(self) -> Iterator[CallPiece]:
        if self._call is not None and (rest := self._call[1].flush()):
            yield CallPiece(self._call[0], rest)


def whole(channel: Channel, text: str) -> str:
    """A text that does not come in pieces."""
    return channel.feed(text) + channel.flush()
