"""Llama 3: the answer is {"name": ..., "parameters": ...}, perhaps behind <|python_tag|>, or words."""

from __future__ import annotations

from collections.abc import Collection

from server.text.formats.events import Content, Event
from server.text.formats.json_call import JsonCallReader

TAG = "<|python_tag|>"
_BLANK = " \t\r\n"


class LlamaReader:
    """An object that does not call one of `names` is words, as is all that follows words. Calls may follow each other,
    with blanks or a semicolon between them."""

    is_reasoning = False

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._held = ""  # blanks and the tag, of which nobody knows yet what they stand before
        self._call: JsonCallReader | None = None
        self._call_is_known = False
        self._is_words = False
        self._has_called = False

    @property
    def num_held(self) -> int:
        is_open = self._call is not None and not self._call_is_known
        return len(self._held) + (len(self._call.raw) if self._call is not None and is_open else 0)

    def feed(self, text: str) -> list[Event]:
        events: list[Event] = []
        while text:
            text = self._step(text, events)
        return events

    def finish(self) -> list[Event]:
        held, self._held = self._held, ""
        if self._call is not None and self._call.raw and not self._call_is_known:
            held += self._call.raw
        return [Content(held)] if held and not (self._has_called and not held.strip(_BLANK + ";")) else []

    def _step(self, text: str, events: list[Event]) -> str:
        if self._is_words:
            events.append(Content(text))
            return ""
        return self._read_call(self._call, text, events) if self._call is not None else self._begin(text, events)

    def _begin(self, text: str, events: list[Event]) -> str:
        self._held += text
        rest = self._held.lstrip(_BLANK + ";" if self._has_called else _BLANK).removeprefix(TAG).lstrip(_BLANK)
        if rest.startswith("{"):
            self._held = self._held[: len(self._held) - len(rest)]
            self._call, self._call_is_known = JsonCallReader(self._names), False
            return rest
        if not rest or TAG.startswith(rest):
            return ""
        self._to_words(events)
        return ""

    def _to_words(self, events: list[Event], more: str = "") -> None:
        events.append(Content(self._held + more))
        self._held, self._call, self._is_words = "", None, True

    def _read_call(self, call: JsonCallReader, text: str, events: list[Event]) -> str:
        before = len(events)
        rest = call.feed(text, events)
        if len(events) > before:
            self._call_is_known = self._has_called = True
            self._held = ""
        if call.failed:
            self._to_words(events, call.raw)
        elif call.is_done:
            self._call = None
        elif call.is_broken:
            return ""  # of a call that was told of already
        return rest
