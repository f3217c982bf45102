"""A request that engines work on: from its reservation to its settlement.

Everything that it holds (its lease, its place in a worker, its receivers) is let go when the `async with` of its
`Computation` is left, whatever the reason.
"""

from __future__ import annotations

import math
import time
from operator import attrgetter
from typing import Self

from batching.client import RESTART_HINT_MS
from engines.types import FinishReason, OutputDelta, RequestError, Usage
from server.accounting import computed_by, outcome_of, usage_of, usage_record
from server.admission import Admission, Admitted
from server.cache.wish import Result, cache_header
from server.choice import Piece
from server.errors import APIError, Overloaded, from_engine
from server.generation import Generation, Resources, deadline_of, too_long
from server.job import Job
from server.placing import Placed
from server.quarantine import refused
from server.shielded import to_the_end
from server.store.records import UsageRecord
from server.time_limit import TimeLimit
from server.tracing.timeline import Timeline
from server.work import Terms, Work

IS_DONE = attrgetter("is_done")  # asked at every token, where a generator would cost as much as the answer


class Computation(Admitted, Generation):
    """One that engines work on. Entered, it is admitted and submitted; left, what runs is aborted and what was used
    is settled."""

    def __init__(self, job: Job, resources: Resources, cache: Result | None = None) -> None:
        """`cache`: what the response cache, where there is one, says of it."""
        super().__init__(job)
        self._resources = resources
        self._cache = cache
        self._admission = Admission(resources.entitlement, job, job.cost)
        self._times = resources.metrics.of(job.deployment.model, job.deployment.version)
        self._failure: APIError | None = None
        self._first_token_at: float | None = None
        self._last_token_at = 0.0
        self._submitted_at: float | None = None
        self._last_sign = 0.0  # of life, for which the engines have a time
        self._deadline = deadline_of(job, resources.timeouts)
        salt = resources.cache_salt(job.caller.principal)
        self._limit = TimeLimit()
        self._work = Work(job, Terms(self._deadline, salt, resources.retries, resources.metrics))

    async def __aenter__(self) -> Self:
        try:
            await to_the_end(self._reserve())
            self._last_sign = self._submitted_at = time.monotonic()
            self._work.submit()
        except BaseException as error:
            if isinstance(error, APIError):
                error.headers = self.headers | error.headers
            await to_the_end(self._close(error))
            raise
        self._resources.leases.hold(self)
        return self

    async def _reserve(self) -> None:
        await self._admission.reserve()
        self.headers = self._admission.headers | cache_header(self._cache)

    # --- reading

    @property
    def is_done(self) -> bool:
        return all(map(IS_DONE, self._work.choices))

    @property
    def usage(self) -> Usage:
        return usage_of(self._work.choices)

    async def next(self, patience: float = float("inf")) -> list[Piece]:
        ends = time.monotonic() + patience
        while True:
            self._check()
            if self._work.ready.is_set() and (pieces := self._take_all()):
                break
            if self._failure is None and not await self._wait(ends - time.monotonic()):
                return []
        if self.is_done:
            await self._settle()
        return pieces

    def _check(self) -> None:
        if time.monotonic() >= self._deadline:
            self.fail(too_long())
        if self._failure is not None:
            raise self._failure

    def _take_all(self) -> list[Piece]:
        pieces = []
        for placed, delta in self._work.take():
            piece = self._take(placed, delta)
            is_progress = delta.has_output and delta.error is None
            if is_progress or not piece.is_empty:
                pieces.append(piece)
        return pieces

    def _take(self, placed: Placed, delta: OutputDelta) -> Piece:
        if delta.has_output:
            self._observe_tokens()
        piece = placed.choice.take(delta)
        if piece.finish_reason is not None:
            if delta.finish_reason is None and placed.place is not None:
                placed.place.abort()  # a stop string: the engine doesn't know of it
        elif delta.error is not None:
            if not self._goes_on(placed, delta.error):
                placed.choice.finish_reason = FinishReason.ERROR
                self.fail(refused() if placed.is_refused else from_engine(delta.error, self.job.grammar_param))
            elif not self.job.streamed and not placed.choice.has_output:
                return Piece(piece.index, "", is_anew=True)
        return piece

    def _goes_on(self, placed: Placed, error: RequestError) -> bool:
        """A new engine has the time of a first token to give its own."""
        if self._failure is not None or not self._work.move(placed, error):
            return False
        self._last_sign = time.monotonic()
        return True

    async def _wait(self, patience: float) -> bool:
        """Whether something arrived: tokens, or that the engine, or the whole request, has taken too long."""
        silence_ends = self._last_sign + self._step_timeout
        remaining = min(self._deadline, silence_ends) - time.monotonic()
        try:
            with self._limit(min(patience, remaining)):
                await self._work.ready.wait()
        except TimeoutError:  # no clock is asked again: timers may be early by a millisecond
            if self._work.ready.is_set():  # we were late, not the engine
                return True
            if patience < remaining:
                return False
            self._waited_in_vain(is_over=self._deadline <= silence_ends)
        return True

    def _waited_in_vain(self, *, is_over: bool) -> None:
        """For a sign of life, or, if it `is_over`, for the end. An engine that hangs is as good as one that failed."""
        if not is_over and self._work.move_silent():
            self._last_sign = time.monotonic()
        else:
            self.fail(too_long() if is_over else _no_sign_of_life())

    @property
    def _step_timeout(self) -> float:
        """Work in the background waits for others' as long as it has to."""
        if self.job.caller.is_in_background:
            return math.inf
        timeouts = self._resources.timeouts
        is_starting = self._first_token_at is None or self._work.is_under_way_again
        return timeouts.first_token if is_starting else timeouts.between_tokens

    def _observe_tokens(self) -> None:
        now = time.monotonic()
        if self._first_token_at is None:
            self._first_token_at = now
            self._times.first_token.observe(now - self.job.caller.arrival)
        else:
            self._times.inter_token.observe(now - self._last_token_at)
        self._last_token_at = self._last_sign = now

    # --- the lease (`leases.Leaseholder`)

    @property
    def tokens_used(self) -> int:
        return self.usage.total_tokens

    def fail(self, error: APIError) -> None:
        if self._failure is None and not self.is_done:
            self._failure = error
            self._work.ready.set()

    # --- the end

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        await to_the_end(self._close(error))

    async def _close(self, error: BaseException | None) -> None:
        self._limit.close()
        if not self._admission.is_held:  # refused: nothing is held
            return
        is_complete = self.is_done
        try:
            await self._work.close()
            await self._settle()
        finally:
            if isinstance(error, APIError):
                error.is_logged = True
            self._resources.leases.drop(self)
            record = self._record(error or self._failure)
            self._resources.finished(record, self.job.caller)
            if self._resources.trace is not None:
                self._resources.trace(record, self.job, self._timeline(is_complete))

    def _record(self, error: BaseException | None) -> UsageRecord:
        choices, admitted_at = self._work.choices, self._admission.admitted_at
        outcome = outcome_of([choice.finish_reason for choice in choices], error)
        return usage_record(
            self.job,
            computed_by(choices),
            outcome,
            admitted_at,
            self._first_token_at,
            queue_seconds=choices[0].queue_seconds if choices else None,
            cache=self._cache,
        )

    def _timeline(self, is_complete: bool) -> Timeline:
        choices, arrival = self._work.choices, self.job.caller.arrival
        queued = choices[0].queue_seconds if choices else None
        return Timeline(
            arrival=arrival,
            ended=time.monotonic(),
            submitted=self._submitted_at,
            first_step=None if queued is None else arrival + queued,
            first_token=self._first_token_at,
            last_token=self._last_token_at or None,
            is_complete=is_complete,
            failures=self._work.failures,
        )

    async def _settle(self) -> None:
        """What was computed is charged; a request that the engine never began costs nothing at all."""
        used = computed_by(self._work.choices).total_tokens
        await (self._admission.settle(used) if used else self._admission.release())


def _no_sign_of_life() -> APIError:
    message = "The engine gives no sign of life."
    return Overloaded(message, code="engine_timeout", retry_after_ms=RESTART_HINT_MS)
