"""Tool calls that stand behind a marker: what the readers of those formats share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from server.text.formats.events import BufferedReader, Content, Event
from server.text.formats.scan import find_first, safe_end

_BLANK = " \t\r\n"


class MarkedReader(BufferedReader):
    """Words up to a marker, then whatever the format has there. Blanks around calls belong to the format."""

    is_reasoning = False
    markers: ClassVar[Sequence[str]]  # that begin a call, or a section of calls

    def __init__(self) -> None:
        super().__init__()
        self._in_call = False
        self._has_called = False
        self._has_words = False  # since the last call

    def finish(self) -> list[Event]:
        events: list[Event] = []
        if self._in_call:
            self.finish_call(events)
        elif not self._has_called or self._buffer.strip(_BLANK):
            self._say(self._buffer, events)
        self._buffer = ""
        return events

    def _step(self, events: list[Event]) -> bool:
        return self.read_call(events) if self._in_call else self._read_words(events)

    def _read_words(self, events: list[Event]) -> bool:
        if found := find_first(self._buffer, self.markers):
            start, marker = found
            self._say(self._buffer[:start].rstrip(_BLANK), events)
            self._buffer = self._buffer[start + len(marker) :]
            self._in_call = self._has_called = True
            self._has_words = False
            self.begin_call(marker)
            return True
        end = len(self._buffer[: safe_end(self._buffer, self.markers)].rstrip(_BLANK))
        self._say(self._buffer[:end], events)
        self._buffer = self._buffer[end:]
        return False

    def _say(self, text: str, events: list[Event]) -> None:
        if self._has_called and not self._has_words:
            text = text.lstrip(_BLANK)
        if text:
            self._has_words = True
            events.append(Content(text))

    def resume(self) -> None:
        """The call, or the section of calls, is over: words may follow."""
        self._in_call = False

    @abstractmethod
    def begin_call(self, marker: str) -> None: ...

    @abstractmethod
    def read_call(self, events: list[Event]) -> bool:
        """Read from the buffer; as `_step`."""

    def finish_call(self, events: list[Event]) -> None:
        """The answer ends inside a call."""
