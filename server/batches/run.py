"""One batch, run by the gateway that holds its lease: validated, its lines asked, its files written.

Whatever ends this run in the middle, another one goes on where it was: with what is in the store and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass

import msgspec
from starlette.types import ASGIApp

from engines.types import BACKGROUND_PRIORITY
from server.auth import Authenticator, Principal
from server.batches.lines import Line, Validation, parse, split
from server.batches.pace import Pace
from server.batches.patience import FAULTS, seconds_to_wait
from server.batches.recorder import Recorder
from server.errors import Overloaded
from server.inner import Inner, InnerAnswer, ask
from server.routing import Router
from server.settings_sections import BatchSettings
from server.store import Store
from server.store.files import FileWriter
from server.store.records import BatchStatus, StoredBatch, utc_now
from server.wire.batches import BatchError, line_result, not_run

BEAT = 1.0  # seconds between two looks at the lease, at a cancellation, at the end of the window, and at the key
FEATURES = frozenset({"batch"})
NOT_RUN = {
    BatchStatus.EXPIRED: ("batch_expired", "This request was not executed before the completion window ended."),
    BatchStatus.CANCELLED: ("batch_cancelled", "This request was not executed before the batch was cancelled."),
}
REVOKED = BatchError("invalid_api_key", "The API key that made this batch is not valid any more.")

log = logging.getLogger("penstock.batches")


@dataclass(slots=True, frozen=True)
class Shop:
    """What all runs of a gateway share."""

    app: ASGIApp
    store: Store
    authenticator: Authenticator
    router: Router
    settings: BatchSettings
    line_bytes: int
    owner: str  # this gateway, to the lease
    pace: Pace


class Run:
    def __init__(self, batch: StoredBatch, shop: Shop) -> None:
        self._batch = batch
        self._shop = shop
        self._changing = asyncio.Lock()  # what was asked for first is not put over what was answered last
        self._principal: Principal | None = None
        self._recorder = Recorder(shop.store.batches, batch.id, shop.owner)
        self._work: asyncio.Task[None] | None = None  # what a cancellation or the end of the window cuts short

    async def go(self) -> None:
        """Until the batch is over. Raises LeaseLost, and whatever the store raises."""
        beating = asyncio.create_task(self._beat_for_ever())
        working = asyncio.create_task(self._to_the_end())
        try:
            await asyncio.wait({beating, working}, return_when=asyncio.FIRST_COMPLETED)
            await (working if working.done() else beating)
        finally:
            for task in (working, beating):
                task.cancel()
            await asyncio.gather(working, beating, return_exceptions=True)

    # --- the lease, and what may end the work early

    async def _beat_for_ever(self) -> None:
        while True:
            await asyncio.sleep(BEAT)
            async with self._changing:
                self._batch = await self._shop.store.batches.renew(self._batch.id, self._shop.owner)
            with contextlib.suppress(Overloaded):  # the store is away: so is the lease, soon
                await self._look_at_key()
            if self._is_cut_short() and self._work is not None:
                self._work.cancel()

    async def _look_at_key(self) -> None:
        principal = await self._shop.authenticator.still_valid(self._batch.key_id)
        if principal is not None:
            self._principal = principal
        elif not self._is_cut_short():
            await self._change(
                status=BatchStatus.CANCELLING.value, cancelling_at=utc_now(), errors=[msgspec.to_builtins(REVOKED)]
            )

    def _is_cut_short(self) -> bool:
        return self._batch.cancelling_at is not None or utc_now() >= self._batch.expires_at

    async def _change(self, **values: object) -> None:
        async with self._changing:
            self._batch = await self._shop.store.batches.change(self._batch.id, self._shop.owner, **values)

    # --- from the first line to the files

    async def _to_the_end(self) -> None:
        await self._look_at_key()
        if self._batch.in_progress_at is None and not self._is_cut_short():
            await self._validate()
        if self._batch.errors is not None and self._batch.cancelling_at is None:
            await self._finish(BatchStatus.FAILED)
            return
        await self._unless_cut_short()
        await self._recorder.settled()
        await self._write_files()

    async def _unless_cut_short(self) -> None:
        if self._is_cut_short():
            return
        self._work = asyncio.create_task(self._run_lines())
        try:
            await self._work
        except asyncio.CancelledError:
            if not self._is_cut_short() or (task := asyncio.current_task()) is None or task.cancelling():
                self._work.cancel()
                raise

    async def _validate(self) -> None:
        validation = Validation(self._batch.endpoint, self._shop.line_bytes, self._check_model)
        async for lines in self._lines():
            await asyncio.to_thread(validation.add_all, lines)
            if validation.is_hopeless:
                break
        validation.finish()
        if validation.errors:
            await self._change(errors=[msgspec.to_builtins(error) for error in validation.errors])
            return
        await self._change(
            status=BatchStatus.IN_PROGRESS.value,
            in_progress_at=utc_now(),
            total=validation.num_lines,
            model=validation.model,
        )

    def _check_model(self, model: str) -> None:
        assert self._principal is not None
        self._shop.router.resolve(model, self._principal)

    def _lines(self) -> AsyncIterator[list[Line]]:
        return split(self._shop.store.files.chunks(self._batch.input_file_id), self._shop.line_bytes)

    async def _missing(self) -> AsyncIterator[Line]:
        done = await self._shop.store.batches.done(self._batch.id)
        async for lines in self._lines():
            for line in lines:
                if line.number not in done:
                    yield line

    # --- the lines

    async def _run_lines(self) -> None:
        missing, lock = self._missing(), asyncio.Lock()

        async def work() -> None:
            while True:
                async with lock:
                    line = await anext(missing, None)
                if line is None:
                    return
                await self._run_line(line)

        async with contextlib.aclosing(missing), asyncio.TaskGroup() as workers:  # type: ignore[type-var]
            for _ in range(self._shop.settings.concurrent_lines):
                workers.create_task(work())

    async def _run_line(self, line: Line) -> None:
        request = parse(line)
        answer = await self._ask(bytes(request.body))
        await self._recorder.add(line_result(line.number, request.custom_id, answer))

    async def _ask(self, body: bytes) -> InnerAnswer:
        num_faults = 0
        while True:
            await self._shop.pace.wait()
            answer = await ask(self._shop.app, self._batch.endpoint, body, self._inner())
            num_faults += answer.status in FAULTS
            wait = seconds_to_wait(answer.status, answer.headers, num_faults)
            if wait is None:
                return answer
            await asyncio.sleep(wait)

    def _inner(self) -> Inner:
        assert self._principal is not None, "a key that is good for nothing cuts the work short"
        return Inner(self._principal, FEATURES, BACKGROUND_PRIORITY, self._shop.settings.line_timeout)

    # --- the files

    async def _write_files(self) -> None:
        batches, batch = self._shop.store.batches, self._batch
        if batch.cancelling_at is None:
            await self._change(status=BatchStatus.FINALIZING.value, finalizing_at=utc_now())
        not_run_lines = [line async for line in self._missing()] if self._is_validated else []
        ending = self._ending(bool(not_run_lines))
        output = await self._new_file(batches.outputs(batch.id, is_error=False))
        errors = await self._new_file(_chain(batches.outputs(batch.id, is_error=True), not_run_lines, ending))
        await self._finish(ending, output, errors, len(not_run_lines))

    @property
    def _is_validated(self) -> bool:
        return self._batch.in_progress_at is not None

    def _ending(self, is_incomplete: bool) -> BatchStatus:
        if self._batch.cancelling_at is not None:
            return BatchStatus.CANCELLED
        return BatchStatus.EXPIRED if is_incomplete or not self._is_validated else BatchStatus.COMPLETED

    async def _new_file(self, lines: AsyncIterator[bytes]) -> FileWriter | None:
        """None where there is nothing to write. An account that is full gets its results all the same."""
        writer = None
        async for line in lines:
            writer = writer or await self._shop.store.files.begin(self._batch.account_id, None)
            await writer.write(line)
        return writer

    async def _finish(
        self,
        status: BatchStatus,
        output: FileWriter | None = None,
        errors: FileWriter | None = None,
        num_not_run: int = 0,
    ) -> None:
        await self._shop.store.batches.finish(
            self._batch.id, self._shop.owner, status, output=output, errors=errors, num_not_run=num_not_run
        )
        log.info("batch %s ended: %s", self._batch.id, status.value)


async def _chain(failed: AsyncIterator[bytes], rest: list[Line], ending: BatchStatus) -> AsyncIterator[bytes]:
    async for line in failed:
        yield line
    for line_ in rest:
        yield not_run(parse(line_).custom_id, *NOT_RUN[ending])
