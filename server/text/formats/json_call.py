"""A tool call written as a JSON object, such as {"name": "f", "arguments": {...}}, read while it arrives."""

from __future__ import annotations

import json
from collections.abc import Collection
from enum import Enum, auto

from server.text.formats.events import Arguments, CallBegin, Event
from server.text.formats.scan import ValueScanner

_BLANK = " \t\r\n"
NAME = "name"
ARGUMENTS = ("arguments", "parameters")


class _State(Enum):
    START = auto()
    KEY = auto()
    COLON = auto()
    VALUE = auto()
    DONE = auto()
    FAILED = auto()


class JsonCallReader:
    """Arguments pass through as they are written once the name is known. `raw` is all that was consumed.

    With `names`, a call of another function is no call; `failed` says that this was none, and nothing was told of it.
    """

    def __init__(self, names: Collection[str] | None = None) -> None:
        self.raw = ""
        self._names = names
        self._state = _State.START
        self._scanner = ValueScanner()
        self._token = ""  # of the key or value that is being read
        self._key: str | None = None
        self._name: str | None = None
        self._early: str | None = None  # arguments before the name
        self._has_arguments = False

    @property
    def is_done(self) -> bool:
        return self._state is _State.DONE

    @property
    def failed(self) -> bool:
        return self._state is _State.FAILED and self._name is None

    @property
    def is_broken(self) -> bool:
        return self._state is _State.FAILED

    def feed(self, text: str, events: list[Event]) -> str:
        """Adds to `events`; returns what comes after the object."""
        while text and self._state not in (_State.DONE, _State.FAILED):
            rest = self._step(text, events)
            self.raw += text[: len(text) - len(rest)]
            text = rest
        return text

    def _step(self, text: str, events: list[Event]) -> str:
        if self._state is _State.VALUE or (self._state is _State.KEY and self._token):
            return self._read_value(text, events)
        character = text[0]
        if character in _BLANK or (character == "," and self._state is _State.KEY):
            return text[1:]
        return self._begin(character, text, events)

    def _begin(self, character: str, text: str, events: list[Event]) -> str:
        if self._state is _State.START and character == "{":
            self._state = _State.KEY
        elif self._state is _State.KEY and character == "}":
            self._end(events)
        elif self._state is _State.KEY and character == '"':
            return self._read_value(text, events)
        elif self._state is _State.COLON and character == ":":
            self._state = _State.VALUE
        else:
            self._state = _State.FAILED
            return text
        return text[1:]

    def _read_value(self, text: str, events: list[Event]) -> str:
        if not self._token:
            stripped = text.lstrip(_BLANK)
            if len(stripped) < len(text):
                return stripped
        end = self._scanner.feed(text)
        part = text if end is None else text[:end]
        self._token += part
        if self._passes_through:
            self._has_arguments = True
            events.append(Arguments(part))
        if end is None:
            return ""
        self._take(events)
        return text[end:]

    @property
    def _passes_through(self) -> bool:
        is_value = self._state is _State.VALUE and self._key in ARGUMENTS
        return is_value and self._name is not None and self._scanner.first == "{"

    def _take(self, events: list[Event]) -> None:
        """A whole key or value is there."""
        token, passed = self._token, self._passes_through
        self._token, self._scanner = "", ValueScanner()
        if self._state is _State.KEY:
            self._key = str(_loads(token))
            self._state = _State.COLON
            return
        self._state = _State.KEY
        if self._key == NAME:
            self._take_name(_loads(token), events)
        elif self._key in ARGUMENTS and not passed:
            self._early = token
            self._give_early(events)

    def _take_name(self, name: object, events: list[Event]) -> None:
        if not isinstance(name, str) or (self._names is not None and name not in self._names) or self._name is not None:
            self._state = _State.FAILED
            return
        self._name = name
        events.append(CallBegin(name))
        self._give_early(events)

    def _give_early(self, events: list[Event]) -> None:
        """Arguments that stood before the name, or as a string of JSON."""
        if self._early is None or self._name is None:
            return
        value = _loads(self._early) if self._early.startswith('"') else self._early
        events.append(Arguments("{}" if self._early == "null" or value is None else str(value)))
        self._early, self._has_arguments = None, True

    def _end(self, events: list[Event]) -> None:
        self._state = _State.DONE if self._name is not None else _State.FAILED
        if self._name is not None and not self._has_arguments:
            events.append(Arguments("{}"))


def _loads(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None
