"""DeepSeek: a section of calls, each a name and arguments between tokens of its own.

V3.1: <｜tool▁call▁begin｜>name<｜tool▁sep｜>{...}<｜tool▁call▁end｜>. R1 and V3 before it: "function" in the place of
the name, then the name on a line, and the arguments in a fence of Markdown.
"""

from __future__ import annotations

from server.text.formats.events import Arguments, CallBegin, Event
from server.text.formats.marked import MarkedReader
from server.text.formats.scan import ValueScanner, find_first

SECTION, SECTION_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, SEPARATOR, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_BLANK = " \t\r\n"


class DeepSeekReader(MarkedReader):
    markers = (SECTION, CALL)

    def begin_call(self, marker: str) -> None:
        self._in_header = marker == CALL
        self._arguments: ValueScanner | None = None

    def read_call(self, events: list[Event]) -> bool:
        if self._arguments is not None:
            return self._read_arguments(self._arguments, events)
        return self._read_header(events) if self._in_header else self._read_between()

    def _read_between(self) -> bool:
        found = find_first(self._buffer, (CALL, SECTION_END))
        if found is None:
            return False
        start, marker = found
        self._buffer = self._buffer[start + len(marker) :]
        if marker == SECTION_END:
            self.resume()
        else:
            self._in_header = True
        return True

    def _read_header(self, events: list[Event]) -> bool:
        separator = self._buffer.find(SEPARATOR)
        start = self._buffer.find("{", separator) if separator >= 0 else -1
        if start < 0:
            return False
        before, after = self._buffer[:separator], self._buffer[separator + len(SEPARATOR) : start]
        named = after.replace("```json", "").replace("```", "").strip(_BLANK)
        events.append(CallBegin(named or before.strip(_BLANK)))
        self._buffer, self._arguments, self._in_header = self._buffer[start:], ValueScanner(), False
        return True

    def _read_arguments(self, scanner: ValueScanner, events: list[Event]) -> bool:
        end = scanner.feed(self._buffer)
        if self._buffer[:end]:
            events.append(Arguments(self._buffer[:end]))
        self._buffer = "" if end is None else self._buffer[end:]
        if end is not None:
            self._arguments = None
        return bool(self._buffer)
