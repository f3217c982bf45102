"""A running request: from its reservation to its settlement.

Everything that a request holds (its lease, its place in a worker, its receivers) is let go when the `async with` of
its `Generation` is left, whatever the reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from starlette.websockets import WebSocketDisconnect

from batching.client import RESTART_HINT_MS, WorkerClient
from engines.types import FinishReason, GenerationRequest, OutputDelta, Usage
from server.auth import Principal
from server.choice import Choice, Piece
from server.entitlement import Entitlement, Grant
from server.errors import APIError, DeadlineExceeded, Overloaded, from_engine
from server.job import Caller, Job, PreparedPrompt
from server.leases import LeaseKeeper
from server.metrics import Metrics
from server.registry import Replica
from server.routing import pick
from server.settings import TimeoutSettings
from server.store.records import UsageRecord, utc_now
from server.wire.common import Answer

ABORT_PATIENCE = 1.0  # seconds to wait for the worker's account of aborted work

log = logging.getLogger("penstock.generation")


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

    def cache_salt(self, principal: Principal) -> bytes:
        """Tenants never share prefix blocks, and no client can choose whose it meets."""
        return hmac.digest(self.salt_key, principal.account_id.encode(), hashlib.sha256)[:16]


class Generation:
    """A running request. Enter it to reserve and submit; leaving it aborts what runs and settles what was used.

    One reader at a time. `headers` are the answer's, once entered.
    """

    def __init__(self, job: Job, resources: Resources) -> None:
        self.job = job
        self.headers: dict[str, str] = {}
        self._resources = resources
        self._ready = asyncio.Event()
        self._choices: list[Choice] = []
        self._replica: Replica | None = None
        self._client: WorkerClient | None = None
        self._grant: Grant | None = None
        self._times = resources.metrics.of(job.deployment.model, job.deployment.version)
        self._settled = False
        self._admitted_at = utc_now()
        self._failure: APIError | None = None
        self._first_token_at: float | None = None
        self._last_delta_at = 0.0
        self._deadline = job.caller.arrival + self._total_timeout()

    def _total_timeout(self) -> float:
        """A client that waits for a whole answer leaves when its read timeout is over; a stream keeps it waiting."""
        total, client = self._resources.timeouts.total, self.job.caller.read_timeout
        return total if self.job.streamed or client is None else min(total, client)

    async def __aenter__(self) -> Generation:
        try:
            await _to_the_end(self._reserve())
            self._submit()
        except BaseException as error:
            if isinstance(error, APIError):
                error.headers = self.headers | error.headers
            await _to_the_end(self._close(error))
            raise
        self._resources.leases.hold(self)
        return self

    async def _reserve(self) -> None:
        """One lease a request, under its own id: a repeat is the same lease."""
        job = self.job
        if self._grant is None:
            self._admitted_at = utc_now()
        self._grant = await self._resources.entitlement.reserve(self.lease_id, self.account, job.layers, job.cost)
        self.headers = self._grant.headers

    def _submit(self) -> None:
        """The receivers are registered before the work is sent (`WorkerClient.submit`)."""
        self._replica = pick(self.job.deployment)
        self._replica.num_open += 1
        self._client = self._replica.client
        assert self._client is not None
        self._last_delta_at = time.monotonic()
        for index, prompt in enumerate(self.job.prompts):
            stream = prompt.new_stream()
            receiver = self._client.submit(self._request(index, prompt), self._ready)
            self._choices.append(Choice(index, prompt, receiver, stream))

    def _request(self, index: int, prompt: PreparedPrompt) -> GenerationRequest:
        caller = self.job.caller
        return GenerationRequest(
            request_id=f"{caller.request_id}-{index}",
            account=caller.principal.account_id,
            prompt_token_ids=prompt.token_ids,
            prompt_text=prompt.text,
            sampling=prompt.sampling,
            arrival=caller.arrival,
            deadline=self._deadline,
            cache_salt=self._resources.cache_salt(caller.principal),
        )

    # --- reading

    @property
    def is_done(self) -> bool:
        """All choices have ended, none of them in an error."""
        return all(choice.is_done for choice in self._choices)

    @property
    def usage(self) -> Usage:
        """Of all choices so far."""
        return Usage(
            prompt_tokens=sum(choice.num_prompt for choice in self._choices),
            cached_tokens=sum(choice.num_cached for choice in self._choices),
            completion_tokens=sum(choice.num_output for choice in self._choices),
        )

    async def next(self, patience: float = float("inf")) -> list[Piece]:
        """What arrived since the last call; empty when nothing did within `patience` seconds.

        Tokens that arrived meanwhile come together, and before an error that arrived with them. When the last choice
        has ended, the lease is settled before this returns. Raises APIError when the request failed.
        """
        while True:
            self._check()
            if pieces := self._take_all():
                break
            if self._failure is None and not await self._wait(patience):
                return []
        if self.is_done:
            await self._settle()
        return pieces

    def _check(self) -> None:
        if time.monotonic() >= self._deadline:
            self.fail(_too_long())
        if self._failure is not None:
            raise self._failure

    async def collect(self) -> list[Answer]:
        """The whole answers, in the order of the prompts."""
        texts: list[list[str]] = [[] for _ in self._choices]
        while not self.is_done:
            for piece in await self.next():
                texts[piece.index].append(piece.text)
        return [
            Answer("".join(text), choice.finish_reason)
            for text, choice in zip(texts, self._choices, strict=True)
            if choice.finish_reason is not None
        ]

    def _take_all(self) -> list[Piece]:
        self._ready.clear()
        pieces = []
        for choice in self._choices:
            if choice.finish_reason is None and (delta := choice.receiver.take()) is not None:
                piece = self._take(choice, delta)
                if delta.has_output or delta.error is None:
                    pieces.append(piece)
        return pieces

    def _take(self, choice: Choice, delta: OutputDelta) -> Piece:
        if delta.has_output:
            self._observe_tokens()
        piece = choice.take(delta)
        if delta.error is not None:
            self.fail(from_engine(delta.error))
        elif piece.finish_reason is not None and delta.finish_reason is None:
            self._abort(choice)  # a stop string: the engine doesn't know of it
        return piece

    async def _wait(self, patience: float) -> bool:
        """Whether something arrived: tokens, or that the engine, or the whole request, has taken too long."""
        silence_ends = self._last_delta_at + self._step_timeout
        remaining = min(self._deadline, silence_ends) - time.monotonic()
        try:
            async with asyncio.timeout(min(patience, remaining)):
                await self._ready.wait()
        except TimeoutError:  # no clock is asked again: timers may be early by a millisecond
            if self._ready.is_set():  # we were late, not the engine
                return True
            if patience < remaining:
                return False
            self.fail(_too_long() if self._deadline <= silence_ends else _no_sign_of_life())
        return True

    @property
    def _step_timeout(self) -> float:
        timeouts = self._resources.timeouts
        return timeouts.first_token if self._first_token_at is None else timeouts.between_tokens

    def _observe_tokens(self) -> None:
        now = time.monotonic()
        if self._first_token_at is None:
            self._first_token_at = now
            self._times.first_token.observe(now - self.job.caller.arrival)
        else:
            self._times.inter_token.observe(now - self._last_delta_at)
        self._last_delta_at = now

    # --- the lease (`leases.Leaseholder`)

    @property
    def lease_id(self) -> str:
        return self.job.caller.request_id

    @property
    def account(self) -> str:
        return self.job.caller.principal.account_id

    @property
    def tokens_used(self) -> int:
        return self.usage.total_tokens

    async def lease_expired(self) -> None:
        """We were stopped for too long and others may have our place: ask for it again, or end in an error."""
        if self._settled:  # it was finished long ago, and its client still reads
            return
        try:
            await self._reserve()
        except APIError as error:
            self.fail(error)

    def fail(self, error: APIError) -> None:
        """The reader gets this error next, unless the answer is complete."""
        if self._failure is None and not self.is_done:
            self._failure = error
            self._ready.set()

    # --- the end

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        await _to_the_end(self._close(error))

    async def _close(self, error: BaseException | None) -> None:
        if self._grant is None:  # refused: nothing is held
            return
        try:
            await self._abort_unfinished()
            await self._settle()
        finally:
            if isinstance(error, APIError):
                error.is_logged = True
            self._resources.leases.drop(self)
            if self._replica is not None:
                self._replica.num_open -= 1
            self._resources.finished(self._usage_record(self._outcome(error or self._failure)), self.job.caller)

    async def _abort_unfinished(self) -> None:
        """Stop what still runs, and hear how far its prompts had come: that is what is charged."""
        unfinished = [choice for choice in self._choices if choice.finish_reason is None]
        for choice in unfinished:
            self._abort(choice)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ABORT_PATIENCE):
                for choice in unfinished:
                    await self._await_end(choice)
        for choice in self._choices:
            if self._client is not None:
                self._client.forget(choice.receiver.request_id)

    async def _await_end(self, choice: Choice) -> None:
        while choice.finish_reason is None:
            delta = await choice.receiver.get()
            choice.count(delta)
            choice.finish_reason = delta.finish_reason

    def _abort(self, choice: Choice) -> None:
        if self._client is not None:
            self._client.abort(choice.receiver.request_id)

    async def _settle(self) -> None:
        """What was computed is charged; a request that the engine never began costs nothing at all."""
        if self._settled or self._grant is None:
            return
        entitlement = self._resources.entitlement
        used = sum(choice.num_computed + choice.num_output for choice in self._choices)
        try:
            await (entitlement.settle(self._grant, used) if used else entitlement.release(self._grant))
        except OSError as error:
            log.warning("lease %s could not be settled, it will expire: %s", self.lease_id, error)
        self._settled = True

    def _outcome(self, error: BaseException | None) -> str:
        if isinstance(error, APIError):
            return error.code or error.type
        if error is not None:
            client_left = isinstance(error, (asyncio.CancelledError, WebSocketDisconnect))
            return FinishReason.ABORT if client_left else "server_error"
        reasons = [choice.finish_reason for choice in self._choices if choice.finish_reason is not None]
        return reasons[0] if reasons else FinishReason.ABORT

    def _since_arrival(self, moment: float | None) -> float | None:
        return None if moment is None else moment - self.job.caller.arrival

    def _usage_record(self, outcome: str) -> UsageRecord:
        job, caller = self.job, self.job.caller
        usage = self.usage
        queue_seconds = self._choices[0].queue_seconds if self._choices else None
        return UsageRecord(
            request_id=caller.request_id,
            account_id=caller.principal.account_id,
            key_id=caller.principal.key_id,
            model=job.deployment.model,
            version=job.deployment.version,
            endpoint=caller.endpoint,
            features=job.features,
            prompt_tokens=sum(choice.num_computed for choice in self._choices),
            cached_tokens=usage.cached_tokens,
            completion_tokens=sum(choice.num_output for choice in self._choices),
            started_at=self._admitted_at,
            queue_ms=_milliseconds(queue_seconds),
            first_token_ms=_milliseconds(self._since_arrival(self._first_token_at)),
            total_ms=round(1000 * (time.monotonic() - caller.arrival)),
            outcome=outcome,
        )


def _too_long() -> APIError:
    return DeadlineExceeded("The request took too long.")


def _no_sign_of_life() -> APIError:
    message = "The engine gives no sign of life."
    return Overloaded(message, code="engine_timeout", retry_after_ms=RESTART_HINT_MS)


async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Cancelled or not, the work is done; then the cancellation goes on."""
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            log.info("cancelled while it failed: %r", error)
        raise


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(1000 * seconds)
