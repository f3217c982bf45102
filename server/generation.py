"""A running request as its routes see it, whatever answers it: engines (`server.computation`) or a cache."""

from __future__ import annotations

import hashlib
import hmac
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from engines.types import Usage
from server.auth import Principal
from server.choice import Piece, WholeChoice, likeliest
from server.entitlement import Entitlement
from server.errors import APIError, DeadlineExceeded
from server.failover import RetryBudget
from server.job import Caller, Job
from server.leases import LeaseKeeper
from server.metrics import Metrics
from server.settings_sections import TimeoutSettings
from server.store.records import UsageRecord
from server.tracing.timeline import Timeline
from server.wire.common import Answer

if TYPE_CHECKING:
    from server.cache.cache import ResponseCache


@dataclass(slots=True, frozen=True)
class Resources:
    """What every request of a gateway shares."""

    entitlement: Entitlement
    leases: LeaseKeeper
    metrics: Metrics
    timeouts: TimeoutSettings
    finished: Callable[[UsageRecord, Caller], None]
    salt_key: bytes
    is_draining: Callable[[], bool]
    retries: RetryBudget = field(default_factory=RetryBudget)
    cache: ResponseCache | None = None
    trace: Callable[[UsageRecord, Job, Timeline], None] | None = None  # called at the end of each request

    def cache_salt(self, principal: Principal) -> bytes:
        """Tenants never share prefix blocks, and no client can choose whose it meets."""
        return hmac.digest(self.salt_key, principal.account_id.encode(), hashlib.sha256)[:16]


class Generation(ABC):
    """A running request, as its routes see it. Enter it to begin; leaving it lets go of all that it holds.

    One reader at a time. `headers` are the answer's, once entered.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.headers: dict[str, str] = {}

    @abstractmethod
    async def __aenter__(self) -> Self:
        """Raises APIError when it is refused: then nothing is held."""

    @abstractmethod
    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None: ...

    @property
    @abstractmethod
    def is_done(self) -> bool:
        """All choices have ended, none of them in an error, and all of it was read."""

    @property
    @abstractmethod
    def usage(self) -> Usage:
        """Of all choices so far."""

    @abstractmethod
    async def next(self, patience: float = float("inf")) -> list[Piece]:
        """What arrived since the last call; empty when nothing did within `patience` seconds.

        What arrived meanwhile comes together, and before an error that arrived with it. When the last choice has
        ended, the lease is settled before this returns. Raises APIError when the request failed.
        """

    async def collect(self) -> list[Answer]:
        """The whole answers that are wanted, in the order of the prompts."""
        job = self.job
        wholes = [WholeChoice() for _ in range(job.num_choices)]
        while not self.is_done:
            for piece in await self.next():
                wholes[piece.index].add(piece)
        return likeliest([whole.answer() for whole in wholes], job.num_samples, job.num_wanted)


def deadline_of(job: Job, timeouts: TimeoutSettings) -> float:
    """A client that waits for a whole answer leaves when its read timeout is over; a stream keeps it waiting."""
    total, client = job.caller.total_timeout or timeouts.total, job.caller.read_timeout
    return job.caller.arrival + (total if job.streamed or client is None else min(total, client))


def too_long() -> APIError:
    return DeadlineExceeded("The request took too long.")
