"""What an answer's text holds besides words, and how a reader of a model's format tells of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


@dataclass(slots=True, frozen=True)
class Content:
    text: str


@dataclass(slots=True, frozen=True)
class Reasoning:
    text: str


@dataclass(slots=True, frozen=True)
class CallBegin:
    """A tool call. The `Arguments` that follow, up to the next one, together are its arguments as JSON."""

    name: str


@dataclass(slots=True, frozen=True)
class Arguments:
    text: str


Event = Content | Reasoning | CallBegin | Arguments


class Reader(Protocol):
    """One answer's text in pieces to events. However it is cut into pieces, the events say the same."""

    @property
    def is_reasoning(self) -> bool:
        """Whether the text that comes next is reasoning, for all that is known."""

    @property
    def num_held(self) -> int:
        """Characters at the end of the text so far of which it can't tell yet what they are."""

    def feed(self, text: str) -> list[Event]: ...

    def finish(self) -> list[Event]:
        """At the end of the answer: what was held back."""


class BufferedReader(ABC):
    """A reader that holds back what it can't tell yet, and goes on by steps."""

    def __init__(self) -> None:
        self._buffer = ""

    @property
    def num_held(self) -> int:
        return len(self._buffer)

    def feed(self, text: str) -> list[Event]:
        self._buffer += text
        events: list[Event] = []
        while self._step(events):
            pass
        return events

    @abstractmethod
    def _step(self, events: list[Event]) -> bool:
        """Whether something was consumed that lets more be read."""


def merged(events: Iterable[Event]) -> list[Event]:
    """Neighbours of a kind joined: one form for all ways of cutting a text into pieces."""
    result: list[Event] = []
    for event in events:
        last = result[-1] if result else None
        match last, event:
            case (Content(before), Content(text)) | (Reasoning(before), Reasoning(text)):
                result[-1] = type(event)(before + text)
            case Arguments(before), Arguments(text):
                result[-1] = Arguments(before + text)
            case _:
                result.append(event)
    return result
