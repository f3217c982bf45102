"""A request's lease, from its reservation to its settlement."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable

from server.entitlement import Entitlement, Grant
from server.errors import APIError
from server.job import Job
from server.store.records import utc_now

log = logging.getLogger("penstock.admission")


class Admitted(ABC):
    """What holds a lease, as its keeper sees it (`leases.Leaseholder`)."""

    _admission: Admission

    @property
    def lease_id(self) -> str:
        return self._admission.lease_id

    @property
    def account(self) -> str:
        return self._admission.account

    async def lease_expired(self) -> None:
        await self._admission.reserve_again(self.fail)

    @abstractmethod
    def fail(self, error: APIError) -> None:
        """The reader gets this error next, unless the answer is complete."""


class Admission:
    """One lease a request, under its own id: a repeat is the same lease."""

    def __init__(self, entitlement: Entitlement, job: Job, tokens: int) -> None:
        """`tokens`: what it may use at most."""
        self.headers: dict[str, str] = {}
        self.admitted_at = utc_now()
        self.is_settled = False
        self._entitlement = entitlement
        self._job = job
        self._tokens = tokens
        self._grant: Grant | None = None

    @property
    def lease_id(self) -> str:
        return self._job.caller.request_id

    @property
    def account(self) -> str:
        return self._job.caller.principal.account_id

    @property
    def is_held(self) -> bool:
        """It was admitted, whatever became of it since."""
        return self._grant is not None

    async def reserve(self) -> None:
        """Raises what `Entitlement.reserve` raises."""
        if self._grant is None:
            self.admitted_at = utc_now()
        reserve = self._entitlement.reserve
        self._grant = await reserve(self.lease_id, self.account, self._job.layers, self._tokens)
        self.headers = self._grant.headers

    async def reserve_again(self, fail: Callable[[APIError], None]) -> None:
        """The ledger has let it go, since we were stopped for too long, and others may have its place."""
        if self.is_settled:  # it was finished long ago, and its client still reads
            return
        try:
            await self.reserve()
        except APIError as error:
            fail(error)

    async def settle(self, tokens: int) -> None:
        """Once. The request and these tokens are charged."""
        if self._grant is not None and not self.is_settled:
            await self._finish(self._grant, tokens)

    async def release(self) -> None:
        """Once. Nothing is charged, the request itself included."""
        if self._grant is not None and not self.is_settled:
            await self._finish(self._grant, None)

    async def _finish(self, grant: Grant, tokens: int | None) -> None:
        try:
            await (self._entitlement.release(grant) if tokens is None else self._entitlement.settle(grant, tokens))
        except OSError as error:
            log.warning("lease %s could not be settled, it will expire: %s", self.lease_id, error)
        self.is_settled = True
