"""Mistral: [TOOL_CALLS][{"name": ..., "arguments": ...}, ...], or since 2025 [TOOL_CALLS]name[ARGS]{...} a call."""

from __future__ import annotations

from server.text.formats.events import Arguments, CallBegin, Event
from server.text.formats.json_call import JsonCallReader
from server.text.formats.marked import MarkedReader
from server.text.formats.scan import ValueScanner

OPEN, ARGS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_BLANK = " \t\r\n"


class MistralReader(MarkedReader):
    markers = (OPEN,)

    def begin_call(self, marker: str) -> None:
        self._is_list: bool | None = None
        self._call: JsonCallReader | None = None
        self._arguments: ValueScanner | None = None

    def read_call(self, events: list[Event]) -> bool:
        if self._is_list is None:
            self._buffer = self._buffer.lstrip(_BLANK)
            if not self._buffer:
                return False
            self._is_list = self._buffer[0] == "["
            if self._is_list:
                self._buffer = self._buffer[1:]
        return self._read_list(events) if self._is_list else self._read_named(events)

    def _read_list(self, events: list[Event]) -> bool:
        if self._call is not None:
            self._buffer = self._call.feed(self._buffer, events)
            if self._call.is_broken:
                self._buffer = ""  # nothing tells where the next call would begin
                return False
            if not self._call.is_done:
                return False
            self._call = None
        self._buffer = self._buffer.lstrip(_BLANK + ",")
        if self._buffer.startswith("]"):
            self._buffer = self._buffer[1:]
            self.resume()
        elif self._buffer:
            self._call = JsonCallReader()
        return bool(self._buffer)

    def _read_named(self, events: list[Event]) -> bool:
        if self._arguments is None:
            start = self._buffer.find("{")
            if start < 0:
                return False
            name = self._buffer[:start].split(ARGS)[0].split(CALL_ID)[0].strip(_BLANK)
            events.append(CallBegin(name))
            self._buffer, self._arguments = self._buffer[start:], ValueScanner()
        end = self._arguments.feed(self._buffer)
        events.append(Arguments(self._buffer[:end]))
        self._buffer = "" if end is None else self._buffer[end:]
        if end is not None:
            self.resume()
        return bool(self._buffer)
