"""Whose step is next: that of requests which somebody waits for, or that of work in the background.

The two never share a step, so a step of the foreground takes as long as if there were no background. The background
has the engine to itself while nobody else wants it, in steps that are small and one at a time: whoever arrives waits
for one of them at most. While both have work it gets one step after `SHARE` others, so that it is slow, never starved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, auto

SHARE = 32  # one step in 33 lengthens 3 % of the gaps between tokens: neither their median nor their p95
LINGER = 0.2  # seconds; a client's next request follows its last answer, and should meet an idle engine
STEP_SHARE = 16  # the background's steps have so small a part of the tokens that a step may have


class Turn(Enum):
    FOREGROUND = auto()
    BACKGROUND = auto()
    NOBODY = auto()


def background_tokens(token_budget: int) -> int:
    """What a step of the background may compute: the longest wait for whoever arrives in the middle of it."""
    return max(1, token_budget // STEP_SHARE)


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

    def seconds_of_calm(self, now: float) -> float:
        """How much longer nobody may come before the background begins."""
        return self._last_foreground + self.linger - now
