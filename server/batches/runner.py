"""The batches that this gateway runs. Any number of gateways do the same, each batch is run by one of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator
from functools import partial

from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp

from server.auth import Authenticator
from server.batches.pace import Pace
from server.batches.run import Run, Shop
from server.periodic import attempt
from server.routing import Router
from server.settings import Settings
from server.store import Store
from server.store.batches import LeaseLost

LOOK_EVERY = 2.0  # seconds: for what others created, or left behind
MOST_AT_ONCE = 32  # of all accounts; the others wait, or run elsewhere

log = logging.getLogger("penstock.batches")


class BatchRunner:
    def __init__(self, store: Store, authenticator: Authenticator, router: Router, settings: Settings) -> None:
        self._store = store
        self._authenticator = authenticator
        self._router = router
        self._settings = settings
        self._owner = secrets.token_hex(16)
        self._wake = asyncio.Event()
        self._runs: set[asyncio.Task[None]] = set()
        self._looking: asyncio.Task[None] | None = None

    def look(self) -> None:
        """There is a new one."""
        self._wake.set()

    @contextlib.asynccontextmanager
    async def running(self, app: ASGIApp) -> AsyncIterator[None]:
        """`app` answers the lines, as it answers everybody else."""
        shop = Shop(
            app=app,
            store=self._store,
            authenticator=self._authenticator,
            router=self._router,
            settings=self._settings.batches,
            line_bytes=self._settings.limits.body_bytes,
            owner=self._owner,
            pace=Pace(),
        )
        self._looking = asyncio.create_task(self._look_for_ever(shop))
        try:
            yield
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Lines that run are aborted, and run again elsewhere or after the next start."""
        tasks = [*self._runs, *([self._looking] if self._looking else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look_for_ever(self, shop: Shop) -> None:
        while True:
            await attempt(partial(self._take_what_is_free, shop), "the look for batches")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), LOOK_EVERY)
            self._wake.clear()

    async def _take_what_is_free(self, shop: Shop) -> None:
        while len(self._runs) < MOST_AT_ONCE:
            batch = await self._store.batches.claim(self._owner, self._settings.batches.concurrent_batches)
            if batch is None:
                return
            log.info("batch %s runs here", batch.id)
            task = asyncio.create_task(self._run(Run(batch, shop), batch.id))
            self._runs.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._runs.discard(task)
        self.look()  # the account may have another one

    async def _run(self, run: Run, batch_id: str) -> None:
        """Whatever goes wrong, the lease is let go: the batch goes on with the next look, here or elsewhere."""
        try:
            await run.go()
            return
        except LeaseLost:
            log.info("batch %s is run by another gateway", batch_id)
            return
        except Exception as error:
            log.warning("batch %s was interrupted: %s", batch_id, type(error).__name__)
            await asyncio.sleep(LOOK_EVERY)
        finally:
            with contextlib.suppress(SQLAlchemyError, OSError):
                await self._store.batches.release(batch_id, self._owner)
