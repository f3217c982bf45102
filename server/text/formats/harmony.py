"""gpt-oss: OpenAI's harmony format. An answer is several messages, each with a channel and perhaps a recipient.

    <|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>commentary to=functions.f
    <|constrain|>json<|message|>{...}<|call|>

The prompt ends with <|start|>assistant. Analysis is reasoning, a message to a function is a call, the rest is content.
"""

from __future__ import annotations

import re

from server.text.formats.events import Arguments, BufferedReader, CallBegin, Content, Event, Reasoning
from server.text.formats.scan import find_first, safe_end

CHANNEL, START, MESSAGE, CONSTRAIN = "<|channel|>", "<|start|>", "<|message|>", "<|constrain|>"
END, CALL, RETURN = "<|end|>", "<|call|>", "<|return|>"
MARKERS = (CHANNEL, START, MESSAGE, CONSTRAIN, END, CALL, RETURN)
_ENDS = (END, CALL, RETURN, START)
_RECIPIENT = re.compile(r"to=(?:functions\.)?([^\s<]+)")
_CHANNEL = re.compile(re.escape(CHANNEL) + r"\s*(\w+)")


class HarmonyReader(BufferedReader):
    def __init__(self) -> None:
        super().__init__()
        self._make: type[Content] | type[Reasoning] | type[Arguments] | None = None  # None: in a header

    @property
    def is_reasoning(self) -> bool:
        return self._make is Reasoning

    def finish(self) -> list[Event]:
        events: list[Event] = []
        if self._make is not None and self._buffer:
            events.append(self._make(self._buffer))
        elif self._buffer and CHANNEL not in self._buffer and START not in self._buffer:
            events.append(Content(self._buffer))  # an answer that ends before it keeps to the format
        self._buffer = ""
        return events

    def _step(self, events: list[Event]) -> bool:
        if self._make is None:
            return self._read_header(events)
        found = find_first(self._buffer, _ENDS)
        end = safe_end(self._buffer, _ENDS) if found is None else found[0]
        if end:
            events.append(self._make(self._buffer[:end]))
        if found is None:
            self._buffer = self._buffer[end:]
            return False
        self._buffer = self._buffer[end + len(found[1]) :]
        self._make = None
        return True

    def _read_header(self, events: list[Event]) -> bool:
        end = self._buffer.find(MESSAGE)
        if end < 0:
            return False
        header, self._buffer = self._buffer[:end], self._buffer[end + len(MESSAGE) :]
        channel = _CHANNEL.search(header)
        if recipient := _RECIPIENT.search(header):
            events.append(CallBegin(recipient[1]))
            self._make = Arguments
        else:
            self._make = Reasoning if channel is not None and channel[1] == "analysis" else Content
        return True
