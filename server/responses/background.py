"""Responses that run by themselves, whoever is connected; and the end of those whose gateway has died."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from server import logs
from server.errors import APIError, Overloaded, ServerError
from server.generation import Generation
from server.periodic import periodically
from server.responses.recorder import LEASE
from server.responses.service import Prepared, ResponsesService
from server.store.records import utc_now
from server.store.responses import Progress, StoredResponse
from server.wire.common import encode
from server.wire.response_body import FAILED, ResponseBody, ResponseError
from server.wire.response_events import event_head

SWEEP_EVERY = 2.0  # seconds
CLEAN_EVERY = 60.0
BITE = 50  # expired responses that are removed in one transaction
END_PATIENCE = 10.0  # seconds that the last words of a gateway's responses may take

log = logging.getLogger("penstock.responses")


class Run:
    """One response in the background. `events` are all that it has told so far, by their sequence numbers."""

    def __init__(self, prepared: Prepared) -> None:
        self.events: list[bytes] = []
        self.has_ended = False
        self._prepared = prepared
        self._telling = prepared.telling
        self._opened = prepared.builder.body
        self._is_cancelled = False
        self._is_ending = False
        self._changed = asyncio.Event()
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def id(self) -> str:
        return self._prepared.builder.body.id

    @property
    def opened(self) -> ResponseBody:
        """As its client is told of it at first."""
        return self._opened

    @property
    def account_id(self) -> str:
        return self._prepared.generation.job.caller.principal.account_id

    async def start(self) -> asyncio.Task[None]:
        """Returns when it has been admitted and written down. Raises APIError when it is not."""
        self._task = asyncio.create_task(self._run())
        assert self._prepared.recorder is not None
        self._prepared.recorder.stop = self.stop
        await asyncio.wait([self._started, self._task], return_when=asyncio.FIRST_COMPLETED)
        if not self._started.done():
            self._task.result()
        return self._task

    async def ended(self) -> None:
        await asyncio.wait([self._task])

    async def news(self, num_known: int, patience: float) -> list[bytes]:
        """Events from number `num_known` on; none when none came in time, or it has told all."""
        if len(self.events) <= num_known and not self.has_ended:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self._changed.wait()
        return self.events[num_known:]

    def stop(self, is_cancelled: bool) -> None:
        """It ends soon: as cancelled by its client, or as failed."""
        if not self._is_ending:
            self._is_ending, self._is_cancelled = True, is_cancelled
            self._task.cancel()

    async def _run(self) -> None:
        async with self._prepared.generation as generation:
            await self._begin()
            try:
                last = await self._generate(generation)
            except asyncio.CancelledError:
                last = self._telling.cancelled() if self._is_cancelled else self._telling.failure(_stopped())
            except APIError as error:
                last = self._telling.failure(error)
            except Exception:
                logs.unexpected("a response in the background failed")
                last = self._telling.failure(ServerError("The server failed."))
            await self._end(last)

    async def _begin(self) -> None:
        self._tell(self._telling.opening())
        assert self._prepared.recorder is not None
        await self._prepared.recorder.written()
        await self._telling.begin()
        self._started.set_result(None)

    async def _generate(self, generation: Generation) -> list[bytes]:
        pieces = await generation.next()
        self._tell(self._telling.started())
        while not generation.is_done:
            self._tell(self._telling.of(pieces))
            pieces = await generation.next()
        self._tell(self._telling.of(pieces))
        return self._telling.closing()

    async def _end(self, last: list[bytes]) -> None:
        """Who follows it here is told of no other end than who asks for it later."""
        self._is_ending = True
        try:
            await self._telling.kept()
        except APIError as error:
            log.warning("the end of %s is lost: %s", self.id, error.code)
            last = self._telling.failure(error)
            with contextlib.suppress(APIError):  # it fails all the same
                await self._telling.kept()
        self.has_ended = True
        self._tell(last)

    def _tell(self, events: Sequence[bytes]) -> None:
        self.events += events
        self._changed.set()
        self._changed = asyncio.Event()


class Background:
    """A gateway's runs, and its share of the work on what others left."""

    def __init__(self, service: ResponsesService) -> None:
        self._service = service
        self._runs: dict[str, Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, prepared: Prepared) -> Run:
        """Raises APIError when it is refused."""
        run = Run(prepared)
        task = await run.start()
        self._runs[run.id] = run
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._over(run, done))
        return run

    def _over(self, run: Run, task: asyncio.Task[None]) -> None:
        self._runs.pop(run.id, None)
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a response in the background ended in %s", type(error).__name__)

    def find(self, account_id: str, response_id: str) -> Run | None:
        run = self._runs.get(response_id)
        return run if run is not None and run.account_id == account_id else None

    async def close(self) -> None:
        """What still runs has its last words, and a little time for them."""
        for run in self._runs.values():
            run.stop(is_cancelled=False)
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=END_PATIENCE)

    # --- for all gateways

    async def watch(self) -> None:
        """Ends those whose gateway is gone, until it is cancelled."""
        await periodically(self.sweep, SWEEP_EVERY, "the look for abandoned responses")

    async def sweep(self) -> None:
        """One that this gateway is at is not abandoned, though its lease has run out while the process stood still."""
        for response in await self._service.store.abandoned(utc_now()):
            if response.id not in self._service.scribe.at_work:
                await self._bury(response)

    async def _bury(self, response: StoredResponse) -> None:
        """Its gateway may be back in a moment: whoever takes it over first ends it."""
        store, now, owner = self._service.store, utc_now(), self._service.owner
        if not await store.take_over(response, owner, now, now + LEASE):
            return
        log.warning("response %s was left by its gateway: it has failed", response.id)
        events = await store.events_after(response.id, -1)
        await self._service.scribe.write(_failed(replace(response, owner=owner), events))

    async def clean(self) -> None:
        """Removes what is older than it is kept, until it is cancelled."""
        await periodically(self._remove_expired, CLEAN_EVERY, "the removal of expired responses")

    async def _remove_expired(self) -> None:
        removed = BITE
        while removed == BITE:
            removed = await self._service.store.remove_expired(utc_now(), BITE)
            await asyncio.sleep(1)  # others want the database too


def _failed(response: StoredResponse, events: Sequence[bytes]) -> Progress:
    """The end of one that can't tell of itself any more: what it had told of stays."""
    items = [json.loads(event)["item"] for event in events if event_head(event).type == "response.output_item.done"]
    body: dict[str, Any] = json.loads(response.body)
    error = ResponseError("server_error", "The server that ran this response has stopped.")
    body |= {"status": FAILED, "error": {"code": error.code, "message": error.message}, "output": items}
    number = event_head(events[-1]).sequence_number + 1 if events else 0
    last = {"type": "response.failed", "response": body, "sequence_number": number}
    return Progress(
        response_id=response.id,
        account_id=response.account_id,
        owner=response.owner,
        status=FAILED,
        lease_until=None,
        first=number,
        events=[encode(last)],
        body=encode(body).decode(),
        output=items,
    )


def _stopped() -> Overloaded:
    return Overloaded("The server was stopped before this response had ended.", code="shutting_down")
