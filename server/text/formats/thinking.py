"""Reasoning between <think> and </think>, before the answer."""

from __future__ import annotations

from enum import Enum, auto

from server.text.formats.events import BufferedReader, Content, Event, Reader, Reasoning
from server.text.formats.scan import find_first, safe_end

OPEN, CLOSE = "<think>", "</think>"
_BLANK = " \t\r\n"


class _State(Enum):
    START = auto()  # the answer may begin with <think>
    REASONING = auto()
    AFTER = auto()  # blanks between the reasoning and the answer
    ANSWER = auto()


class ThinkingReader(BufferedReader):
    """Tells of reasoning and hands the rest to `inner`. `opened`: the prompt has opened the reasoning already.

    Blanks at both ends of the reasoning belong to the format.
    """

    def __init__(self, inner: Reader, *, opened: bool) -> None:
        super().__init__()
        self._inner = inner
        self._state = _State.REASONING if opened else _State.START
        self._is_empty = True  # the reasoning so far

    @property
    def is_reasoning(self) -> bool:
        return self._state is _State.REASONING or self._inner.is_reasoning

    @property
    def num_held(self) -> int:
        return len(self._buffer) + self._inner.num_held

    def feed(self, text: str) -> list[Event]:
        if self._state is _State.ANSWER:
            return self._inner.feed(text)
        return super().feed(text)

    def finish(self) -> list[Event]:
        events: list[Event] = []
        if self._state is _State.REASONING:
            self._tell(self._buffer.rstrip(_BLANK), events)
        elif self._state is _State.START:
            events += self._inner.feed(self._buffer)
        self._buffer, self._state = "", _State.ANSWER
        return events + self._inner.finish()

    def _step(self, events: list[Event]) -> bool:
        match self._state:
            case _State.START:
                return self._start(events)
            case _State.REASONING:
                return self._reason(events)
            case _State.AFTER:
                self._buffer = self._buffer.lstrip(_BLANK)
                return bool(self._buffer) and self._answer(events)
            case _State.ANSWER:
                return False

    def _start(self, events: list[Event]) -> bool:
        text = self._buffer.lstrip(_BLANK)
        if text.startswith(OPEN):
            self._buffer, self._state = text[len(OPEN) :], _State.REASONING
            return True
        return not OPEN.startswith(text) and self._answer(events)

    def _reason(self, events: list[Event]) -> bool:
        if found := find_first(self._buffer, [CLOSE]):
            self._tell(self._buffer[: found[0]].rstrip(_BLANK), events)
            self._buffer, self._state = self._buffer[found[0] + len(CLOSE) :], _State.AFTER
            return True
        end = len(self._buffer[: safe_end(self._buffer, [CLOSE])].rstrip(_BLANK))
        self._tell(self._buffer[:end], events)
        self._buffer = self._buffer[end:]
        return False

    def _tell(self, text: str, events: list[Event]) -> None:
        text = text.lstrip(_BLANK) if self._is_empty else text
        if text:
            self._is_empty = False
            events.append(Reasoning(text))

    def _answer(self, events: list[Event]) -> bool:
        events += self._inner.feed(self._buffer)
        self._buffer, self._state = "", _State.ANSWER
        return False


class PlainReader:
    """Text that is only text."""

    is_reasoning = False
    num_held = 0

    def feed(self, text: str) -> list[Event]:
        return [Content(text)] if text else []

    def finish(self) -> list[Event]:
        return []
