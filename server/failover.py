"""What becomes of an answer whose engine has failed: it goes on at another replica, or ends in an error.

Decisions alone: plain values in, the time as `now`. `server.work` carries them out.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum

from engines.types import Continuation, SamplingParams

WINDOW = 10.0  # seconds
RETRY_PERCENT = 20  # of the sequences that were begun within the window may be begun a second time,
RETRY_FLOOR = 10  # and so many on top, for gateways with little to do
MAX_MOVES = 8  # of one sequence


class Outcome(StrEnum):
    """The first three move it, the others end it in an error."""

    RETRIED = "retried"  # its client has seen nothing of it: it begins again elsewhere
    CONTINUED = "continued"  # it goes on elsewhere, behind its tokens
    ISOLATED = "isolated"  # it was moved already and came no further: as the former, while no other such one runs
    REFUSED = "refused"  # so again, when it was the only one: it is what kills engines
    GAVE_UP = "gave_up"  # it was moved too often, or to an engine that lives and fails it too
    NO_REPLICA = "no_replica"  # no other one serves
    NO_BUDGET = "no_budget"  # too much is begun a second time already
    CANNOT_CONTINUE = "cannot_continue"  # a stream sampled without a seed, or by an engine that speaks text

    @property
    def moves(self) -> bool:
        return self in (Outcome.RETRIED, Outcome.CONTINUED, Outcome.ISOLATED)


@dataclass(slots=True, frozen=True)
class Failure:
    """An engine failed under a choice: when (by the monotonic clock), what became of it, and the tokens it had."""

    at: float
    choice: int
    outcome: Outcome
    num_tokens: int


@dataclass(slots=True, frozen=True)
class Loss:
    """A sequence whose engine has failed, as far as the decision goes."""

    has_output: bool
    is_streamed: bool  # its client has seen its output
    was_retried: bool
    has_progressed: bool  # since it was moved the last time; true for one that never was
    num_moves: int
    sampling: SamplingParams
    continuation: Continuation
    has_other: bool  # another replica serves, or will soon
    has_died: bool = False  # the engine, with all that it had
    was_alone: bool = False  # no other suspect was on it


class RetryBudget:
    """Bounds what a gateway begins a second time, so that failing engines are not buried under retries.

    One count of what was begun and one of what was retried for each of the last seconds.
    """

    def __init__(self) -> None:
        self._begun = _Window()
        self._retried = _Window()

    def note_begun(self, now: float) -> None:
        self._begun.add(now)

    def take(self, now: float) -> bool:
        """Whether one more may be retried; if so, it is counted."""
        allowed = RETRY_FLOOR + RETRY_PERCENT * self._begun.total(now) // 100
        if self._retried.total(now) >= allowed:
            return False
        self._retried.add(now)
        return True


class _Window:
    """How often something happened in the last WINDOW seconds, to the second."""

    def __init__(self) -> None:
        self._counts: deque[tuple[int, int]] = deque()  # a second, and how often in it
        self._total = 0

    def add(self, now: float) -> None:
        self._forget(now)
        same_second = self._counts and self._counts[-1][0] == int(now)
        count = self._counts.pop()[1] if same_second else 0
        self._counts.append((int(now), count + 1))
        self._total += 1

    def total(self, now: float) -> int:
        self._forget(now)
        return self._total

    def _forget(self, now: float) -> None:
        while self._counts and self._counts[0][0] <= int(now) - WINDOW:
            self._total -= self._counts.popleft()[1]


def decide(loss: Loss, budget: RetryBudget, now: float) -> Outcome:
    """Takes a retry from the budget where it answers RETRIED."""
    is_suspect = not loss.has_progressed
    if is_suspect and loss.has_died and loss.was_alone:
        return Outcome.REFUSED
    if (is_suspect and not loss.has_died) or loss.num_moves >= MAX_MOVES:
        return Outcome.GAVE_UP
    if not loss.has_other:
        return Outcome.NO_REPLICA
    if loss.has_output and loss.sampling.can_continue(loss.continuation):
        return Outcome.ISOLATED if is_suspect else Outcome.CONTINUED
    if loss.has_output and loss.is_streamed:
        return Outcome.CANNOT_CONTINUE
    if is_suspect:
        return Outcome.ISOLATED if budget.take(now) else Outcome.NO_BUDGET
    if loss.was_retried:
        return Outcome.GAVE_UP
    return Outcome.RETRIED if budget.take(now) else Outcome.NO_BUDGET
