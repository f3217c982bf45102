"""Whose step is next: that of requests which somebody waits for, or that of work in the background; and where an engine
both generates and embeds, a step of sequences or a batch of texts.

The two never share a step, so a step of the foreground takes as long as if there were no background. The background
has the engine to itself while nobody else wants it, in steps that are small and one at a time: whoever arrives waits
for one of them at most. While both have work it gets one step after `SHARE` others, so that it is slow, never starved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Generic, Protocol, TypeVar

SHARE = 32  # one step in 33 lengthens 3 % of the gaps between tokens: neither their median nor their p95
LINGER = 0.2  # seconds; a client's next request follows its last answer, and should meet an idle engine
STEP_SHARE = 16  # the background's steps have so small a part of the tokens that a step may have,
BUSY_STEP_SHARE = (
    64  # and a smaller one where somebody came lately: the next one, too, may come in the middle of a step
)
CALM = 2.0  # seconds without the foreground, after which nobody is expected soon


Plan = TypeVar("Plan", covariant=True)


class Turn(Enum):
    FOREGROUND = auto()
    BACKGROUND = auto()
    NOBODY = auto()


def background_tokens(token_budget: int, *, is_calm: bool) -> int:
    """What a step of the background may compute: the longest wait for whoever arrives in the middle of it."""
    return max(1, token_budget // (STEP_SHARE if is_calm else BUSY_STEP_SHARE))


@dataclass(slots=True)
class Turns:
    share: int = SHARE
    linger: float = LINGER
    num_passed: int = 0  # the foreground's steps while the background had work, since its last one
    _last_foreground: float = -math.inf

    def next(self, now: float, *, foreground: bool, background: bool) -> Turn:
        """Of those that have work. The background's work is that which it has no step under way for."""
        if foreground:
            self._last_foreground = now
            return Turn.BACKGROUND if background and self.num_passed >= self.share else Turn.FOREGROUND
        if not background:
            return Turn.NOBODY
        return Turn.BACKGROUND if self.seconds_of_calm(now) <= 0 else Turn.NOBODY

    def took(self, turn: Turn, *, background: bool) -> None:
        """A step was planned; `background`: whether that one had work too. Work that can't run stays due."""
        waited = turn is Turn.FOREGROUND and background
        self.num_passed = self.num_passed + 1 if waited else 0

    def is_calm(self, now: float) -> bool:
        return now - self._last_foreground >= CALM

    def seconds_of_calm(self, now: float) -> float:
        """How much longer nobody may come before the background begins."""
        return self._last_foreground + self.linger - now


# What is planned in a turn: where the background's work can't run, that of the foreground.
_INSTEAD: dict[Turn, tuple[Turn, ...]] = {
    Turn.FOREGROUND: (Turn.FOREGROUND,),
    Turn.BACKGROUND: (Turn.BACKGROUND, Turn.FOREGROUND),
    Turn.NOBODY: (),
}


class Kind(Protocol[Plan]):
    """Work of one kind: that of a scheduler."""

    @property
    def background_is_under_way(self) -> bool:
        """Whether a step of its background was planned and is not answered yet."""

    def wants(self, turn: Turn) -> bool:
        """Whether it has work for such a step."""

    def plan(self, turn: Turn, now: float, *, is_calm: bool) -> Plan | None:
        """Its next step of this sort; None where its work can't run now."""


class TurnTaking(Generic[Plan]):
    """The steps of one engine, for all kinds of its work. Where several kinds want one, they alternate: of two, neither
    waits for more than one step of the other, which has a step's token budget."""

    def __init__(self, kinds: Sequence[Kind[Plan]]) -> None:
        self._turns = Turns()
        self._kinds = {turn: list(kinds) for turn in (Turn.FOREGROUND, Turn.BACKGROUND)}  # who had the last turn, last

    def next_plan(self, now: float) -> Plan | None:
        """None when there is nothing to do, or nothing yet: see `pause`."""
        wanting = {turn: self._wanting(turn) for turn in self._kinds}
        background = bool(wanting[Turn.BACKGROUND])
        first = self._turns.next(now, foreground=bool(wanting[Turn.FOREGROUND]), background=background)
        is_calm = self._turns.is_calm(now)
        for turn in _INSTEAD[first]:
            for kind in wanting[turn]:
                if (plan := kind.plan(turn, now, is_calm=is_calm)) is not None:
                    self._turns.took(turn, background=background)
                    self._kinds[turn].remove(kind)
                    self._kinds[turn].append(kind)
                    return plan
        return None

    def _wanting(self, turn: Turn) -> list[Kind[Plan]]:
        """The background has one step at a time, of whatever kind."""
        if turn is Turn.BACKGROUND and any(kind.background_is_under_way for kind in self._kinds[turn]):
            return []
        return [kind for kind in self._kinds[turn] if kind.wants(turn)]

    def pause(self, now: float) -> float | None:
        """When nothing can be scheduled: in how many seconds that may change by itself. None: it does not."""
        if self._wanting(Turn.FOREGROUND) or not self._wanting(Turn.BACKGROUND):
            return None
        return max(0.0, self._turns.seconds_of_calm(now))
