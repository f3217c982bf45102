"""What a gateway admits while the shared ledger gives no answer.

Nobody knows then what the other gateways admit, so:
- budgets (day, month) are closed: a request that one applies to raises `QuotaUnavailable`;
- each gateway gives out its share of rates and concurrency, `limit // max_gateways`, from buckets that were full
  when the answers stopped: together they never give out more than the limit;
- what one gateway admits alone it also renews, settles and forgets alone. It is in the durable usage, but not in
  the shared budget counters, until those are next restored;
- endings of what the shared ledger admitted are kept and handed in when it answers again. Those that find no
  room, or come too late, end there by expiry.

When the shared ledger answers some gateways and not others (a partial partition), those that it answers still give
out whole limits: together, up to the limit and a share for each gateway that is cut off.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import date
from enum import StrEnum

from quota.encoding import encode
from quota.ledger import (
    AccountUsage,
    CostAboveLimit,
    Ledger,
    LedgerUnavailable,
    QuotaDecision,
    QuotaUnavailable,
    Remaining,
)
from quota.levels import Kind, Layer, Level, Limits
from quota.memory import MemoryLedger, wall_clock_ms

MAX_ENDINGS = 10_000
HAND_IN_EVERY = 0.5  # seconds
LOOK_EVERY = 0.5  # seconds
NOBODY = "nobody"
"""An account that only `watch` asks for."""

log = logging.getLogger("penstock.quota")


class WhenAway(StrEnum):
    """What is admitted without the shared ledger."""

    SHARE = "share"  # budgets closed, a share of everything else
    CLOSED = "closed"  # nothing that has a limit
    OPEN = "open"  # everything, budgets too: nothing is counted


@dataclass(frozen=True, slots=True)
class Ending:
    """How a lease of the shared ledger ended; `tokens` None: it was released."""

    account: str
    tokens: int | None


class DegradedLedger:
    """A `Ledger` over a shared one, which goes on without it as `mode` says.

    `usage` and `restore` need the shared ledger and raise `LedgerUnavailable` without it.
    """

    def __init__(
        self,
        shared: Ledger,
        mode: WhenAway = WhenAway.SHARE,
        max_gateways: int = 4,
        clock: Callable[[], int] = wall_clock_ms,
        on_change: Callable[[bool], None] = lambda is_away: None,
    ) -> None:
        """`on_change` hears of every change of `is_away`, which is False at first."""
        self._shared = shared
        self._mode = mode
        self._max_gateways = max_gateways
        self._alone = MemoryLedger(clock)
        self._ours: set[str] = set()  # leases that were admitted here alone
        self._endings: OrderedDict[str, Ending] = OrderedDict()
        self._handing_in: asyncio.Task[None] | None = None
        self._is_away = False
        self._on_change = on_change

    @property
    def is_away(self) -> bool:
        """Whether the shared ledger gave no answer when it was last asked to admit, or what remains."""
        return self._is_away

    async def watch(self) -> None:
        """Ask twice a second, so that `is_away` is right also while nobody asks for anything. Never returns."""
        while True:
            try:
                await self.peek(NOBODY, ())
            except Exception:  # whatever it is: nobody else would look again
                log.exception("the shared ledger can't be looked at")
            await asyncio.sleep(LOOK_EVERY)

    async def reserve(self, lease_id: str, account: str, layers: Collection[Layer], tokens: int) -> QuotaDecision:
        """Raises `QuotaUnavailable` for what nobody can admit now."""
        if lease_id not in self._ours:
            try:
                answer = await self._shared.reserve(lease_id, account, layers, tokens)
            except LedgerUnavailable as error:
                self._went_away(error)
                self._keep(lease_id, Ending(account, None))  # it may have been admitted, and the answer lost
            else:
                self._endings.pop(lease_id, None)
                self._came_back()
                return answer
        return await self._reserve_alone(lease_id, account, tuple(layers), tokens)

    async def settle(self, lease_id: str, account: str, tokens: int) -> bool:
        if lease_id in self._ours:
            self._ours.discard(lease_id)
            return await self._alone.settle(lease_id, account, tokens)
        return await self._end(lease_id, Ending(account, tokens))

    async def release(self, lease_id: str, account: str) -> bool:
        if lease_id in self._ours:
            self._ours.discard(lease_id)
            return await self._alone.release(lease_id, account)
        return await self._end(lease_id, Ending(account, None))

    async def renew(self, account: str, used_by_lease: Mapping[str, int]) -> frozenset[str]:
        """Leases that nobody can say anything about are not among those to be admitted again."""
        ours = {lease_id: used for lease_id, used in used_by_lease.items() if lease_id in self._ours}
        theirs = {lease_id: used for lease_id, used in used_by_lease.items() if lease_id not in ours}
        gone = await self._alone.renew(account, ours) if ours else frozenset()
        self._ours -= gone
        if not theirs:
            return gone
        try:
            gone |= await self._shared.renew(account, theirs)
        except LedgerUnavailable as error:
            log.debug("leases of %s could not be renewed: %s", account, error)
        return gone

    async def peek(self, account: str, layers: Collection[Layer]) -> Remaining:
        try:
            answer = await self._shared.peek(account, layers)
        except LedgerUnavailable as error:
            self._went_away(error)
            return await self._alone.peek(account, self._shares(tuple(layers)))
        self._came_back()
        return answer

    async def restore(self, account: str, level: Level, name: str, day: date, requests: int, tokens: int) -> bool:
        return await self._shared.restore(account, level, name, day, requests, tokens)

    async def usage(self, account: str) -> AccountUsage:
        return await self._shared.usage(account)

    async def check_integrity(self) -> None:
        await self._alone.check_integrity()
        await self._shared.check_integrity()

    async def close(self) -> None:
        if self._handing_in is not None:
            self._handing_in.cancel()
        await self._alone.close()
        await self._shared.close()

    # -- alone -------------------------------------------------------------------------------------------

    async def _reserve_alone(
        self, lease_id: str, account: str, layers: tuple[Layer, ...], tokens: int
    ) -> QuotaDecision:
        if (fault := encode(layers).fault(tokens)) is not None:
            raise fault
        if self._mode is WhenAway.CLOSED and any(layer.limits.enforced() for layer in layers):
            raise QuotaUnavailable("quotas can't be checked now")
        if self._mode is WhenAway.SHARE and any(_has_budget(layer.limits) for layer in layers):
            raise QuotaUnavailable("budgets can't be checked now")
        try:
            decision = await self._alone.reserve(lease_id, account, self._shares(layers), tokens)
        except CostAboveLimit as error:  # of the share alone
            raise QuotaUnavailable(f"quotas can't be checked now, and alone {error}") from error
        if decision.admitted:
            self._ours.add(lease_id)
        return decision

    def _shares(self, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
        if self._mode is WhenAway.OPEN:
            return ()
        return tuple(Layer(layer.level, layer.name, _share(layer.limits, self._max_gateways)) for layer in layers)

    # -- coming and going --------------------------------------------------------------------------------

    def _went_away(self, error: LedgerUnavailable) -> None:
        if not self._is_away:
            log.warning("the shared ledger is away (%s): %s", error, self._mode)
            self._is_away = True
            self._alone.fill()
            self._on_change(True)

    def _came_back(self) -> None:
        if self._is_away:
            log.warning("the shared ledger is back")
            self._is_away = False
            self._on_change(False)

    async def _hand_in(self) -> None:
        while self._endings:
            lease_id, ending = next(iter(self._endings.items()))
            try:
                await self._end_shared(lease_id, ending)
            except LedgerUnavailable:
                await asyncio.sleep(HAND_IN_EVERY)
                continue
            if self._endings.get(lease_id) is ending:
                del self._endings[lease_id]

    async def _end(self, lease_id: str, ending: Ending) -> bool:
        """True if the shared ledger did not answer: it will be told."""
        try:
            return await self._end_shared(lease_id, ending)
        except LedgerUnavailable:
            self._keep(lease_id, ending)
            return True

    async def _end_shared(self, lease_id: str, ending: Ending) -> bool:
        if ending.tokens is None:
            return await self._shared.release(lease_id, ending.account)
        return await self._shared.settle(lease_id, ending.account, ending.tokens)

    def _keep(self, lease_id: str, ending: Ending) -> None:
        self._endings[lease_id] = ending
        if len(self._endings) > MAX_ENDINGS:
            self._endings.popitem(last=False)
        if self._handing_in is None or self._handing_in.done():
            self._handing_in = asyncio.create_task(self._hand_in())


def _has_budget(limits: Limits) -> bool:
    return any(dimension.kind is Kind.BUDGET for dimension, _ in limits.enforced())


def _share(limits: Limits, max_gateways: int) -> Limits:
    shares = {d.value: limit // max_gateways for d, limit in limits.items() if d.kind is not Kind.BUDGET}
    return Limits(**shares, shadow=limits.shadow)
