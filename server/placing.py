"""Where a choice of a running request is: its place on a replica, or its wait for one."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from batching.client import Receiver, WorkerClient
from engines.types import OutputDelta
from server.balancing import Replica
from server.choice import Choice


@dataclass(slots=True)
class Place:
    """A choice's place on a replica, to be left once."""

    replica: Replica
    client: WorkerClient
    receiver: Receiver
    num_tokens: int  # that it is expected to take
    has_answered: bool = False

    def abort(self) -> None:
        self.client.abort(self.receiver.request_id)

    def answered(self) -> None:
        self.has_answered = True
        self.replica.health.answered(time.monotonic())

    def leave(self) -> None:
        self.client.forget(self.receiver.request_id)
        self.replica.num_open -= 1
        self.replica.open_tokens -= self.num_tokens
        if not self.has_answered:
            self.replica.health.left()


@dataclass(slots=True)
class Placed:
    """A choice and its present place. `num_moves` and what it had at the last of them say whether it gets anywhere."""

    choice: Choice
    place: Place | None = None  # None: it waits for a replica, or for its turn
    num_moves: int = 0
    was_retried: bool = False
    output_when_moved: int = -1
    is_alone: bool = False  # the only suspect on any engine
    is_refused: bool = False
    waiting: asyncio.Task[None] | None = None  # for a place, and then for `settled`
    settled: asyncio.Event = field(default_factory=asyncio.Event)  # it has a token of its latest engine, or has ended
    lost: OutputDelta | None = None  # its end, where it waited in vain

    @property
    def has_progressed(self) -> bool:
        return self.choice.num_output > self.output_when_moved

    def take(self) -> OutputDelta | None:
        """What has arrived."""
        if self.place is None:
            delta, self.lost = self.lost, None
            return delta
        delta = self.place.receiver.take()
        if delta is not None and not self.place.has_answered and delta.has_output:
            self.place.answered()
            self.settled.set()
        return delta

    def leave(self) -> None:
        if self.place is not None:
            self.place.leave()
            self.place = None
