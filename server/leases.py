"""Keeps the leases of running requests alive, and finds out when the ledger has let one go."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from typing import Protocol

from quota.ledger import Ledger
from server.errors import APIError

RENEW_EVERY = 10.0  # seconds; a lease holds for 30

log = logging.getLogger("penstock.leases")


class Leaseholder(Protocol):
    """A running request, as the keeper sees it."""

    @property
    def lease_id(self) -> str: ...

    @property
    def account(self) -> str: ...

    @property
    def tokens_used(self) -> int: ...

    async def lease_expired(self) -> None:
        """Be admitted again, or stop the work."""

    def fail(self, error: APIError) -> None:
        """End in this error."""


class LeaseKeeper:
    """One renewal an account every ten seconds, with the tokens that its requests have used so far."""

    def __init__(self, ledger: Ledger, interval: float = RENEW_EVERY) -> None:
        self._ledger = ledger
        self._interval = interval
        self._held: dict[str, Leaseholder] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    def hold(self, holder: Leaseholder) -> None:
        self._held[holder.lease_id] = holder
        self._idle.clear()

    def drop(self, holder: Leaseholder) -> None:
        self._held.pop(holder.lease_id, None)
        if not self._held:
            self._idle.set()

    @property
    def num_held(self) -> int:
        """Requests that are running."""
        return len(self._held)

    async def wait_until_idle(self) -> None:
        """Until no request is running."""
        await self._idle.wait()

    def fail_all(self, error: APIError) -> None:
        for holder in list(self._held.values()):
            holder.fail(error)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            await self.renew()

    async def renew(self) -> None:
        """A ledger that gives no answer aborts nothing: nobody else is admitted through it either."""
        by_account: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for holder in self._held.values():
            by_account[holder.account][holder.lease_id] = holder.tokens_used
        for account, used in by_account.items():
            try:
                await self._renew(account, used)
            except OSError as error:
                log.warning("leases of %s could not be renewed: %s", account, error)
            except Exception:  # whatever it is: the other leases must not run out, nor these the next time
                log.exception("leases of %s could not be renewed", account)

    async def _renew(self, account: str, used: dict[str, int]) -> None:
        for lease_id in await self._ledger.renew(account, used):
            if (lost := self._held.get(lease_id)) is not None:
                await lost.lease_expired()
