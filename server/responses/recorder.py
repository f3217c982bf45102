"""Writes one running response down while it runs: its events in bites, its end before anybody is told of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import msgspec

from server.errors import Overloaded
from server.reachable import DATABASE_FAULTS, database_reached
from server.responses.scribe import Scribe
from server.store.records import utc_now
from server.store.responses import Opening, Progress, StoredResponse
from server.wire.common import encode
from server.wire.response_body import LIVE, ResponseBody
from server.wire.response_items import Item

FLUSH_EVERY = 0.2  # seconds: a token is no transaction
RENEW_EVERY = 2.0
LEASE = timedelta(seconds=8)  # without a sign of its gateway, a response is taken for dead
LAST_TRIES = 5  # to write an end, `FLUSH_EVERY` seconds apart and more

log = logging.getLogger("penstock.responses")


@dataclass(slots=True, frozen=True)
class Kept:
    """Whose response is kept, by which gateway, for how long, and with which input. `parent` is the stored response
    whose conversation it goes on with."""

    account_id: str
    owner: str
    keep: timedelta
    inputs: Sequence[Item]
    parent: str | None


class Recorder:
    """Begun by `begin`, ended by `end`. `stop` is called when it is not ours any more, or when its client cancels it
    elsewhere; with True for the second."""

    def __init__(self, scribe: Scribe, kept: Kept, body: ResponseBody) -> None:
        self._scribe = scribe
        self._kept = kept
        self._body = body
        self._is_body_new = False
        self._is_opened = False
        self._pending: list[bytes] = []
        self._num_written = 0
        self._renewed_at = 0.0
        self._is_lost = False
        self._has_failed = False
        self._num_tries = LAST_TRIES
        self._ending = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.stop: Callable[[bool], None] = lambda _: None

    def add(self, events: Sequence[bytes], body: ResponseBody) -> None:
        """Never waits."""
        self._pending += events
        if body is not self._body:
            self._body, self._is_body_new = body, True

    def take_back(self) -> None:
        """The last event, which `end` could not write: another takes its place."""
        if self._pending:  # else it is lost, and nothing of it is written any more
            self._pending.pop()

    async def begin(self) -> None:
        """It is written down soon."""
        self._scribe.at_work.add(self._body.id)
        self._task = asyncio.create_task(self._run())

    async def written(self) -> None:
        """Everything so far is written when this returns. Only before `begin`. Raises Overloaded."""
        with database_reached():
            await self._write()

    async def end(self) -> None:
        """Everything is written when this returns. Raises Overloaded when it can't be, or is not ours any more."""
        try:
            await self._end()
        finally:
            self._scribe.at_work.discard(self._body.id)
        if self._is_lost:
            raise Overloaded("The response was deleted, or given up by the other servers.", code="response_lost")

    async def _end(self) -> None:
        self._ending.set()
        if self._task is not None:
            await asyncio.shield(self._task)  # a client that leaves now does not end it: `end` is called again
        for attempt in range(self._num_tries):
            try:
                await self._write()
                break
            except DATABASE_FAULTS as error:
                log.warning("the end of %s can't be written: %s", self._body.id, type(error).__name__)
                await asyncio.sleep(FLUSH_EVERY * 2**attempt)
        else:
            self._num_tries = 1  # of what is to be told instead: somebody waits for it
            raise Overloaded("The response can't be stored at the moment.", retry_after_ms=1000)

    async def _run(self) -> None:
        while not self._is_lost and not await _is_set_within(self._ending, FLUSH_EVERY):
            is_due = asyncio.get_running_loop().time() - self._renewed_at >= RENEW_EVERY
            if self._pending or self._is_body_new or is_due:
                try:
                    await self._write()
                except DATABASE_FAULTS as error:
                    self._note_failure(error)

    def _note_failure(self, error: Exception) -> None:
        """Once: it is tried again every moment."""
        if not self._has_failed:
            self._has_failed = True
            log.warning("events of %s wait in memory: %s", self._body.id, type(error).__name__)

    async def _write(self) -> None:
        """Everything so far. A failure is one of DATABASE_FAULTS."""
        progress, body = self._progress(), self._body
        standing = await self._scribe.write(progress)
        del self._pending[: len(progress.events)]
        self._num_written += len(progress.events)
        self._is_opened = True
        self._is_body_new = self._is_body_new and body is not self._body
        self._renewed_at = asyncio.get_running_loop().time()
        self._is_lost = not standing.is_ours
        if standing.is_cancelled or self._is_lost:
            self.stop(standing.is_cancelled)

    def _progress(self) -> Progress:
        body = self._body
        has_ended = body.status not in LIVE
        return Progress(
            response_id=body.id,
            account_id=self._kept.account_id,
            owner=self._kept.owner,
            status=body.status,
            lease_until=None if has_ended else utc_now() + LEASE,
            first=self._num_written,
            events=self._pending[:],
            body=encode(body).decode() if self._is_body_new and self._is_opened else None,
            output=_items(body) if has_ended else (),
            opening=None if self._is_opened else self._opening(),
        )

    def _opening(self) -> Opening:
        now, kept = utc_now(), self._kept
        response = StoredResponse(
            id=self._body.id,
            account_id=kept.account_id,
            parent_id=kept.parent,
            status=self._body.status,
            is_background=self._body.background,
            body=encode(self._body).decode(),
            created_at=now,
            expires_at=now + kept.keep,
            owner=kept.owner,
            lease_until=now + LEASE,
        )
        return Opening(response, kept.inputs)


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


def _items(body: ResponseBody) -> list[Item]:
    items: list[Item] = msgspec.to_builtins(body.output)
    return items
