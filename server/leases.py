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

    def hold(self, holder: Leaseholder) -> None:
        self._held[holder.lease_id] = holder

    def drop(self, holder: Leaseholder) -> None:
        self._held.pop(holder.lease_id, None)

    @property
    def num_held(self) -> int:
        """Requests that are running."""
        return len(self._held)

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
                expired = await self._ledger.renew(account, used)
            except OSError as error:
                log.warning("leases of %s could not be renewed: %s", account, error)
                continue
            for lease_id in expired:
                if (lost := self._held.get(lease_id)) is not None:
                    await lost.lease_expired()
