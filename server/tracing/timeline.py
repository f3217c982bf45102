"""When what happened to a request: plain values, from which its spans are made when it has ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from server.failover import Failure


@dataclass(slots=True, frozen=True)
class Phase:
    name: str
    start: float
    end: float


@dataclass(slots=True, frozen=True)
class Timeline:
    """In seconds of the monotonic clock; None for what did not come to pass.

    `first_step` is known of requests that had a token or were aborted behind it: of others the queue's time and the
    prefill's are one phase.
    """

    arrival: float
    ended: float
    submitted: float | None = None
    first_step: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    is_complete: bool = True
    failures: Sequence[Failure] = ()

    def phases(self) -> Iterator[Phase]:
        """One behind another, none of them before the one it follows."""
        if self.submitted is None:
            return
        yield Phase("prepare", self.arrival, self.submitted)
        until_token = self.ended if self.first_token is None else self.first_token
        if self.first_step is None:
            yield Phase("queue", self.submitted, until_token)
        else:
            first_step = min(max(self.first_step, self.submitted), until_token)
            yield Phase("queue", self.submitted, first_step)
            yield Phase("prefill", first_step, until_token)
        if self.first_token is not None:
            last = self.last_token if self.is_complete and self.last_token is not None else self.ended
            yield Phase("decode", self.first_token, last)
