"""Which replicas are set aside: those that fail, and those that are much slower than their peers.

Decisions alone: plain values in, the time as `now`. `server.balancing` carries them out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

MAX_FAILURES = 3  # in a row
FIRST_BAN, MAX_BAN = 5.0, 60.0  # seconds; every ban is twice as long as the one before,
FORGIVEN_AFTER = 60.0  # until a replica has done well for so long
SLOW_FACTOR = 3.0  # of the peers' median time for a step,
SLOW_FLOOR = 0.01  # and so many seconds above it
MORE_WORK = 1.5  # times the peers' median of work in a step: with more, a replica is not slow but busy
MIN_STEPS = 5  # in a window, before its pace says anything
SLOW_WINDOWS = 3  # in a row


class Ejection(StrEnum):
    """Why a replica is set aside."""

    FAILING = "failing"
    SLOW = "slow"


class Health:
    """A circuit breaker. Closed: it takes requests. Open: it was set aside. Then one request is let through, a probe,
    and what becomes of it closes or opens it again."""

    def __init__(self) -> None:
        self._num_failures = 0  # in a row
        self._num_bans = 0
        self._banned_until: float | None = None
        self._back_since = -math.inf
        self._is_probed = False
        self._num_slow = 0  # windows in a row

    @property
    def is_set_aside(self) -> bool:
        return self._banned_until is not None

    def wants_probe(self, now: float) -> bool:
        return self._banned_until is not None and now >= self._banned_until and not self._is_probed

    def probe(self) -> None:
        self._is_probed = True

    def answered(self, now: float) -> None:
        """A request had its first output from it."""
        self._num_failures = 0
        if self._is_probed:
            self._is_probed, self._banned_until, self._back_since = False, None, now

    def left(self) -> None:
        """A request that it had not answered was taken back: of a probe, nothing is known."""
        self._is_probed = False

    def failed(self) -> bool:
        """It failed a request, or died. Whether it should be set aside, or longer."""
        if self.is_set_aside:
            return self._is_probed
        self._num_failures += 1
        return self._num_failures >= MAX_FAILURES

    def was_slow(self, is_slow: bool) -> bool:
        """In one more window. Whether it should be set aside."""
        self._num_slow = self._num_slow + 1 if is_slow else 0
        return self._num_slow >= SLOW_WINDOWS and not self.is_set_aside

    def set_aside(self, now: float) -> None:
        if not self.is_set_aside and now - self._back_since > FORGIVEN_AFTER:
            self._num_bans = 0
        self._banned_until = now + min(FIRST_BAN * 2**self._num_bans, MAX_BAN)
        self._num_bans += 1
        self._num_failures = self._num_slow = 0
        self._is_probed = False


@dataclass(slots=True, frozen=True)
class Window:
    """What a replica did lately. `work`: sequences and prompt tokens, summed over its steps."""

    steps: int
    seconds: float
    work: int

    @property
    def pace(self) -> float:
        """Seconds a step."""
        return self.seconds / self.steps


def slow_ones(windows: Sequence[Window | None]) -> list[bool]:
    """Which replicas take much longer for a step than their peers do for one of as much work; None: not known."""
    known = [None if window is None or window.steps < MIN_STEPS else window for window in windows]
    return [
        window is not None and _is_slow(window, [peer for peer in known if peer is not None and peer is not window])
        for window in known
    ]


def _is_slow(window: Window, peers: Sequence[Window]) -> bool:
    if not peers:
        return False
    usual_pace = median(peer.pace for peer in peers)
    usual_work = median(peer.work / peer.steps for peer in peers)
    is_busier = window.work / window.steps > MORE_WORK * usual_work
    return not is_busier and window.pace > max(SLOW_FACTOR * usual_pace, usual_pace + SLOW_FLOOR)
