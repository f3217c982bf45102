"""How a request is answered: by engines, or by what the cache has of it.

Whoever begins a computation pays for it, to its end; who reads a recording, or another one's computation, is admitted
and recorded as a request of its own that uses no tokens.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Self

from engines.types import ErrorCode, FinishReason, RequestError, Usage
from server.accounting import outcome_of, usage_record
from server.admission import Admission, Admitted
from server.cache.cache import ResponseCache
from server.cache.flight import Flight, Source, Tape
from server.cache.recording import Recording
from server.cache.terms import Terms, terms_of
from server.cache.wish import Result, cache_header
from server.choice import Piece
from server.computation import Computation
from server.errors import APIError, from_engine
from server.generation import Generation, Resources, deadline_of, too_long
from server.job import Job
from server.shielded import to_the_end
from server.time_limit import TimeLimit
from server.tracing.timeline import Timeline
from server.wire.common import Answer

_BEGUN_AGAIN = RequestError(ErrorCode.ENGINE_FAILED, "The engine failed, and the answer had begun already.")


def answering(job: Job, resources: Resources) -> Generation:
    """What answers this request, as far as its client and the configuration allow."""
    if (cache := resources.cache) is None:
        return Computation(job, resources)
    terms = terms_of(job)
    if not terms.shares:
        count(job, resources, Result.MISS)
        return Computation(job, resources, Result.MISS)
    return CachedGeneration(job, resources, cache, terms)


def count(job: Job, resources: Resources, result: Result) -> None:
    resources.metrics.cache.requests.labels(job.deployment.model, job.deployment.version, result).inc()


class CachedGeneration(Admitted, Generation):
    """A request whose answer others may share. As a `leases.Leaseholder` it is one that computes nothing itself."""

    tokens_used = 0

    def __init__(self, job: Job, resources: Resources, cache: ResponseCache, terms: Terms) -> None:
        super().__init__(job)
        self._resources = resources
        self._cache = cache
        self._terms = terms
        self._key = cache.key(job)
        self._deadline = deadline_of(job, resources.timeouts)
        self._limit = TimeLimit()
        self._source: Source | None = None
        self._result = Result.MISS
        self._admission = Admission(resources.entitlement, job, 0)  # of one that computes nothing itself
        self._is_entered = False
        self._failure: APIError | None = None
        self._first_at: float | None = None
        self._given: set[int] = set()  # choices that the client has seen something of
        self._endings: list[FinishReason] = []

    async def __aenter__(self) -> Self:
        try:
            await self._begin()
        except BaseException as error:
            if isinstance(error, APIError):
                error.headers = self._admission.headers | error.headers
            await to_the_end(self._close(error))
            raise
        self._is_entered = True
        count(self.job, self._resources, self._result)
        return self

    async def _begin(self) -> None:
        while self._source is None:
            found = await self._cache.find(self._key) if self._terms.reads else None
            if isinstance(found, Recording):
                self._source = Tape(found)
                await self._be_admitted(Result.HIT)
            elif found is not None:
                await self._join(found)
            else:
                await self._compute()

    async def _join(self, flight: Flight) -> None:
        """Who waits for one that is refused looks again: that one's limits are not its own."""
        self._source = flight.join()
        if await flight.begin():
            await self._be_admitted(Result.SHARED)
        else:
            self._source = None

    async def _compute(self) -> None:
        """The computation does not end with its client, so it has no client's patience."""
        job = replace(self.job, caller=replace(self.job.caller, read_timeout=None))
        computation = Computation(job, self._resources, Result.MISS)
        flight = self._cache.begin(self._key, computation)
        self._source = flight.join(computes=True)
        await flight.begin()
        if flight.was_refused and (failure := self._source.failure) is not None:
            raise failure
        self.headers = computation.headers

    async def _be_admitted(self, result: Result) -> None:
        self._result = result
        await to_the_end(self._admission.reserve())
        self.headers = self._admission.headers | cache_header(result)
        self._resources.leases.hold(self)

    # --- reading

    @property
    def is_done(self) -> bool:
        return self._source is not None and self._source.is_done

    @property
    def usage(self) -> Usage:
        return Usage() if self._source is None else self._source.usage

    async def next(self, patience: float = float("inf")) -> list[Piece]:
        source = self._source
        assert source is not None
        while True:
            self._check()
            if pieces := source.take():
                break
            if (failure := source.failure) is not None:
                raise failure
            if not await self._wait(source, patience):
                return []
        self._note(pieces)
        if self.is_done:
            await self._admission.settle(0)
        return pieces

    async def collect(self) -> list[Answer]:
        if self._source is not None:
            self._source.wait_for_all()
        return await super().collect()

    def _check(self) -> None:
        if time.monotonic() >= self._deadline:
            self.fail(too_long())
        if self._failure is not None:
            raise self._failure

    async def _wait(self, source: Source, patience: float) -> bool:
        """Whether something arrived, or the request has taken too long."""
        remaining = self._deadline - time.monotonic()
        try:
            with self._limit(min(patience, remaining)):
                await source.ready.wait()
        except TimeoutError:  # no clock is asked again: timers may be early by a millisecond
            if not source.ready.is_set() and patience < remaining:
                return False
            if not source.ready.is_set():
                self.fail(too_long())
        return True

    def _note(self, pieces: list[Piece]) -> None:
        """Raises APIError where a choice begins again that a stream's client has seen something of."""
        if self._first_at is None:
            self._first_at = time.monotonic()
        for piece in pieces:
            if piece.is_anew and self.job.streamed and piece.index in self._given:
                raise from_engine(_BEGUN_AGAIN)
            self._given.add(piece.index)
            if piece.finish_reason is not None:
                self._endings.append(piece.finish_reason)

    # --- the lease (`leases.Leaseholder`)

    def fail(self, error: APIError) -> None:
        if self._failure is None and not self.is_done:
            self._failure = error
            if self._source is not None:
                self._source.ready.set()

    # --- the end

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        await to_the_end(self._close(error))

    async def _close(self, error: BaseException | None) -> None:
        self._limit.close()
        usage = self.usage if self._given else Usage()
        try:
            if self._source is not None:
                await self._source.leave(error if self._is_entered else None)
            await (self._admission.settle(0) if usage.total_tokens else self._admission.release())
        finally:
            if self._admission.is_held:
                self._leave_books(usage, error)

    def _leave_books(self, usage: Usage, error: BaseException | None) -> None:
        """Who computes has them kept by the computation."""
        if isinstance(error, APIError):
            error.is_logged = True
        self._resources.leases.drop(self)
        outcome = outcome_of(self._endings, error or self._failure)
        admitted_at = self._admission.admitted_at
        record = usage_record(self.job, usage, outcome, admitted_at, self._first_at, cache=self._result)
        self._resources.finished(record, self.job.caller)
        if self._resources.trace is not None:
            self._resources.trace(record, self.job, Timeline(self.job.caller.arrival, time.monotonic()))
