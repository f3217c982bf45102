"""A response in the making: from the pieces of its answer to its events and its items."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from engines.types import FinishReason, Usage
from server.choice import Piece
from server.errors import APIError
from server.text.answer import CallPiece
from server.text.logprobs import ToldToken
from server.wire.logprobs import delta_logprobs, response_logprobs
from server.wire.response_body import (
    CANCELLED,
    COMPLETED,
    FAILED,
    IN_PROGRESS,
    INCOMPLETE,
    QUEUED,
    FunctionCall,
    IncompleteDetails,
    OutputItem,
    OutputMessage,
    OutputText,
    Reasoning,
    ReasoningText,
    ResponseBody,
    response_error,
    usage_body,
)
from server.wire.response_events import (
    ArgumentsDelta,
    ArgumentsDone,
    ContentPartAdded,
    ContentPartDone,
    ErrorEvent,
    Event,
    OutputItemAdded,
    OutputItemDone,
    OutputTextDelta,
    OutputTextDone,
    ReasoningDelta,
    ReasoningDone,
    ResponseCompleted,
    ResponseCreated,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
    ResponseQueued,
)
from server.wire.response_items import new_item_id

_REASONS = {FinishReason.LENGTH: "max_output_tokens", FinishReason.CONTENT_FILTER: "content_filter"}


@dataclass(slots=True)
class _Open:
    """The item that is being written: its form so far, and its text in parts."""

    item: OutputItem
    index: int
    parts: list[str] = field(default_factory=list)
    tokens: list[ToldToken] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.parts)


class ResponseBuilder:
    """Every method returns the events that it makes; together they are the response's stream, in order.

    `finish`, `skip`, `fail` and `cancel` each make its terminal event, as the last of theirs: one of them is called,
    once, and another only after `take_back`. `sealed` makes the encrypted content of what was thought, where it is
    asked for.
    """

    def __init__(self, body: ResponseBody, sealed: Callable[[str], str] | None = None) -> None:
        self.body = body
        self._sealed = sealed
        self._next_number = 0
        self._items: list[OutputItem] = []
        self._open: _Open | None = None
        self._blank = ""  # white space before words that may not come: it alone makes no message
        self._blank_tokens: list[ToldToken] = []
        self._reason: FinishReason | None = None

    def create(self) -> list[Event]:
        events: list[Event] = [ResponseCreated(self.body, self._number())]
        return [*events, ResponseQueued(self.body, self._number())] if self.body.status == QUEUED else events

    def start(self) -> list[Event]:
        self._become(status=IN_PROGRESS)
        return [ResponseInProgress(self.body, self._number())]

    def add(self, pieces: Iterable[Piece]) -> list[Event]:
        events: list[Event] = []
        for piece in pieces:
            if piece.is_anew:
                self._items, self._open = [], None
                self._drop_blank()
            if piece.reasoning:
                events += self._think(piece.reasoning)
            if piece.text or piece.tokens:
                events += self._say(piece.text, piece.tokens or ())
            for call in piece.calls:
                events += self._call(call)
            self._reason = piece.finish_reason or self._reason
        return events

    # --- the end

    def finish(self, usage: Usage) -> list[Event]:
        """Of an answer that is complete, or as long as it may be."""
        reason = None if self._reason is None else _REASONS.get(self._reason)
        events = [*self._last_words(), *self._close(COMPLETED if reason is None else INCOMPLETE)]
        if reason is not None:
            self._end(INCOMPLETE, usage, incomplete_details=IncompleteDetails(reason))
            return [*events, ResponseIncomplete(self.body, self._number())]
        self._end(COMPLETED, usage, completed_at=int(time.time()))
        return [*events, ResponseCompleted(self.body, self._number())]

    def skip(self) -> list[Event]:
        """The end of one that was to generate nothing."""
        self._end(COMPLETED, Usage(0, 0, 0), completed_at=int(time.time()))
        return [ResponseCompleted(self.body, self._number())]

    def fail(self, error: APIError, usage: Usage | None = None) -> list[Event]:
        self._cut(FAILED, usage, error=response_error(error))
        return [ResponseFailed(self.body, self._number())]

    def take_back(self) -> None:
        """The terminal event was told to nobody: another one takes its place."""
        self._next_number -= 1
        self._become(status=IN_PROGRESS, completed_at=None, incomplete_details=None, error=None)

    def cancel(self, usage: Usage | None = None) -> list[Event]:
        """No event of OpenAI's tells of a cancellation: its stream ends in an error."""
        self._cut(CANCELLED, usage)
        return [ErrorEvent("response_cancelled", "The response was cancelled.", None, self._number())]

    def _cut(self, status: str, usage: Usage | None, **fields: object) -> None:
        """What there is of the answer is kept, its last item as incomplete as it is."""
        self._close(INCOMPLETE, tell=False)
        self._end(status, usage, **fields)

    def _end(self, status: str, usage: Usage | None, **fields: object) -> None:
        used = None if usage is None else usage_body(usage)
        self._become(status=status, output=list(self._items), usage=used, **fields)

    def _last_words(self) -> list[Event]:
        """An answer of nothing, or of white space, is a message too."""
        items = [*self._items, self._open.item] if self._open is not None else self._items
        has_answer = any(not isinstance(item, Reasoning) for item in items)
        return [] if has_answer else self._write_message(self._blank, self._blank_tokens)

    # --- items

    def _think(self, text: str) -> list[Event]:
        events: list[Event] = []
        if self._open is None or not isinstance(self._open.item, Reasoning):
            events = self._begin(Reasoning(new_item_id("reasoning"), [], IN_PROGRESS), ReasoningText(""))
        current = self._current(text)
        return [*events, ReasoningDelta(current.item.id, current.index, 0, text, self._number())]

    def _say(self, text: str, tokens: Sequence[ToldToken]) -> list[Event]:
        if self._open is None or not isinstance(self._open.item, OutputMessage):
            self._blank += text
            self._blank_tokens += tokens
            if not self._blank.strip():
                return []
            text, tokens = self._blank, self._blank_tokens
            self._drop_blank()
        return self._write_message(text, tokens)

    def _drop_blank(self) -> None:
        self._blank, self._blank_tokens = "", []

    def _write_message(self, text: str, tokens: Sequence[ToldToken]) -> list[Event]:
        events: list[Event] = []
        if self._open is None or not isinstance(self._open.item, OutputMessage):
            events = self._begin(OutputMessage(new_item_id("message"), IN_PROGRESS), OutputText(""))
        current = self._current(text)
        current.tokens += tokens
        if text or tokens:
            number, logprobs = self._number(), delta_logprobs(tokens)
            events.append(OutputTextDelta(current.item.id, current.index, 0, text, logprobs, number))
        return events

    def _call(self, call: CallPiece) -> list[Event]:
        events: list[Event] = []
        if call.id is not None:
            self._drop_blank()
            events = self._begin(FunctionCall(new_item_id("function_call"), IN_PROGRESS, call.id, call.name or ""))
        if call.arguments:
            current = self._current(call.arguments)
            events.append(ArgumentsDelta(current.item.id, current.index, call.arguments, self._number()))
        return events

    def _begin(self, item: OutputItem, part: OutputText | ReasoningText | None = None) -> list[Event]:
        events = self._close(COMPLETED)
        self._open = _Open(item, len(self._items))
        events.append(OutputItemAdded(self._open.index, item, self._number()))
        if part is not None:
            events.append(ContentPartAdded(item.id, self._open.index, 0, part, self._number()))
        return events

    def _current(self, text: str) -> _Open:
        assert self._open is not None
        self._open.parts.append(text)
        return self._open

    def _close(self, status: str, *, tell: bool = True) -> list[Event]:
        """The item that is open, if there is one."""
        if self._open is None:
            return []
        closed, self._open = self._open, None
        item = self._whole(closed, status)
        self._items.append(item)
        return self._told(item, closed) if tell else []

    def _whole(self, current: _Open, status: str) -> OutputItem:
        text = current.text
        match current.item:
            case FunctionCall() as call:
                return msgspec.structs.replace(call, status=status, arguments=text)
            case Reasoning() as thought:
                sealed = msgspec.UNSET if self._sealed is None else self._sealed(text)
                content = (ReasoningText(text),)
                return msgspec.structs.replace(thought, status=status, content=content, encrypted_content=sealed)
            case message:
                return msgspec.structs.replace(
                    message, status=status, content=(OutputText(text, logprobs=response_logprobs(current.tokens)),)
                )

    def _told(self, item: OutputItem, closed: _Open) -> list[Event]:
        events: list[Event]
        index = closed.index
        match item:
            case FunctionCall():
                events = [ArgumentsDone.of(item, index, self._number())]
            case Reasoning(content=(ReasoningText() as thought,)):
                events = [
                    ReasoningDone(item.id, index, 0, thought.text, self._number()),
                    ContentPartDone(item.id, index, 0, thought, self._number()),
                ]
            case OutputMessage(content=(part,)):
                events = [
                    OutputTextDone(item.id, index, 0, part.text, delta_logprobs(closed.tokens), self._number()),
                    ContentPartDone(item.id, index, 0, part, self._number()),
                ]
            case _:
                raise AssertionError(item)
        return [*events, OutputItemDone(index, item, self._number())]

    def _become(self, **fields: object) -> None:
        self.body = msgspec.structs.replace(self.body, **fields)

    def _number(self) -> int:
        number = self._next_number
        self._next_number += 1
        return number
