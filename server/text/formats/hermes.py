"""Hermes and Qwen: <tool_call>{"name": ..., "arguments": ...}</tool_call>, once for each call."""

from __future__ import annotations

from server.text.formats.events import Content, Event
from server.text.formats.json_call import JsonCallReader
from server.text.formats.marked import MarkedReader
from server.text.formats.scan import safe_end

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class HermesReader(MarkedReader):
    markers = (OPEN,)

    def begin_call(self, marker: str) -> None:
        self._call = JsonCallReader()

    def read_call(self, events: list[Event]) -> bool:
        if not self._call.is_done and not self._call.is_broken:
            self._buffer = self._call.feed(self._buffer, events)
            return self._call.is_done or self._call.is_broken
        return self._read_end(events)

    def _read_end(self, events: list[Event]) -> bool:
        """What is no call is given as the text that it is, up to the marker that ends it."""
        end = self._buffer.find(CLOSE)
        if end < 0:
            if not self._call.failed:
                self._buffer = self._buffer[safe_end(self._buffer, (CLOSE,)) :]
            return False
        if self._call.failed:
            events.append(Content(OPEN + self._call.raw + self._buffer[: end + len(CLOSE)]))
        self._buffer = self._buffer[end + len(CLOSE) :]
        self.resume()
        return True

    def finish_call(self, events: list[Event]) -> None:
        if self._call.failed:
            events.append(Content(OPEN + self._call.raw + self._buffer))
