"""What a gateway admits while the shared ledger gives no answer.

Nobody knows then what the other gateways admit, so:
- budgets (day, month) are closed: a request that one applies to raises `QuotaUnavailable`;
- each gateway gives out its share of rates and concurrency, `limit // max_gateways`: of rates from buckets that were
  full when the answers stopped, of concurrency less what it runs already;
- how leases end meanwhile, and what was admitted alone, is told to the shared ledger when it answers again.

So rates stay within the limit. Concurrency may pass it by the shares of those gateways that ran less than their share
when the answers stopped, until what the others ran has ended. When the shared ledger answers some gateways and not
others (a partial partition), those that it answers still give out whole limits: together, up to the limit and a share
for each gateway that is cut off.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import date
from enum import StrEnum

from quota.encoding import decode, encode
from quota.held import ALONE
from quota.ledger import (
    AccountUsage,
    CostAboveLimit,
    LedgerUnavailable,
    NotAsked,
    QuotaDecision,
    QuotaUnavailable,
    Remaining,
)
from quota.levels import Dimension, Kind, Layer, Level, Limits
from quota.memory import MemoryLedger, wall_clock_ms
from quota.scripted import ScriptedLedger

MAX_ENDINGS = 100_000
MAX_DOUBTS = 10_000
WATCH_EVERY = 0.5  # seconds

log = logging.getLogger("penstock.quota")


class WhenAway(StrEnum):
    """What is admitted without the shared ledger."""

    SHARE = "share"  # budgets closed, a share of everything else
    CLOSED = "closed"  # nothing that has a limit
    OPEN = "open"  # everything, budgets too


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
        shared: ScriptedLedger,
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
        self._endings: OrderedDict[str, Ending] = OrderedDict()  # that the shared ledger does not know yet
        self._doubts: OrderedDict[str, str] = OrderedDict()  # leases it may hold though they were refused; account
        self._is_away = False
        self._on_change = on_change

    @property
    def is_away(self) -> bool:
        """Whether the shared ledger gave no answer when it was last asked to admit, or what remains."""
        return self._is_away

    async def watch(self) -> None:
        """Look twice a second whether the shared ledger answers, and tell it what it does not know. Never returns."""
        while True:
            await self.catch_up()
            await asyncio.sleep(WATCH_EVERY)

    async def catch_up(self) -> None:
        """Tell the shared ledger what runs here and what has ended, as far as it answers. Never raises."""
        try:
            await self._shared.recover()
        except LedgerUnavailable as error:
            self._went_away(error)
            if not self._shared.is_up:
                return
        except Exception:  # whatever it is: nobody else would look again
            log.exception("the shared ledger can't be looked at")
            return
        else:
            self._came_back()
        await self._hand_in()

    # -- the contract ------------------------------------------------------------------------------------

    async def reserve(self, lease_id: str, account: str, layers: Collection[Layer], tokens: int) -> QuotaDecision:
        """Raises `QuotaUnavailable` for what nobody can admit now."""
        layers = tuple(layers)
        if self._is_alone(account, lease_id):
            return await self._reserve_alone(lease_id, account, layers, tokens)
        try:
            answer = await self._shared.reserve(lease_id, account, layers, tokens)
        except LedgerUnavailable as error:
            self._went_away(error)
            return await self._without(error, lease_id, account, layers, tokens)
        self._doubts.pop(lease_id, None)
        self._came_back()
        return answer

    async def settle(self, lease_id: str, account: str, tokens: int) -> bool:
        return await self._end(lease_id, Ending(account, tokens))

    async def release(self, lease_id: str, account: str) -> bool:
        return await self._end(lease_id, Ending(account, None))

    async def renew(self, account: str, used_by_lease: Mapping[str, int]) -> frozenset[str]:
        """Leases that nobody can say anything about are not among those to be admitted again."""
        ours = {lease_id for lease_id in used_by_lease if self._is_alone(account, lease_id)}
        gone = await self._alone.renew(account, used_by_lease) & ours
        for lease_id in gone:
            self._shared.end_alone(account, lease_id, None)
        theirs = {lease_id: used for lease_id, used in used_by_lease.items() if lease_id not in ours}
        self._shared.touch(account, used_by_lease)
        if theirs:
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
        await self._hand_in()
        await self._alone.close()
        await self._shared.close()

    # -- alone -------------------------------------------------------------------------------------------

    def _is_alone(self, account: str, lease_id: str) -> bool:
        """Whether it was admitted here alone, and the shared ledger does not know of it yet."""
        held = self._shared.holding(account, lease_id)
        return held is not None and held.epoch == ALONE

    async def _without(
        self, error: LedgerUnavailable, lease_id: str, account: str, layers: tuple[Layer, ...], tokens: int
    ) -> QuotaDecision:
        is_running = self._shared.holding(account, lease_id) is not None
        try:
            return await self._reserve_alone(lease_id, account, layers, tokens)
        finally:
            is_admitted = is_running or self._is_alone(account, lease_id)
            if not is_admitted and not isinstance(error, NotAsked):  # it may have been, and the answer lost
                self._doubt(lease_id, account)

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
            self._shared.hold_alone(account, lease_id, layers, tokens)
        return decision

    def _shares(self, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
        if self._mode is WhenAway.OPEN:
            return ()
        return tuple(Layer(layer.level, layer.name, _share(layer.limits, self._max_gateways)) for layer in layers)

    # -- coming and going --------------------------------------------------------------------------------

    def _went_away(self, error: LedgerUnavailable) -> None:
        if self._is_away:
            return
        log.warning("the shared ledger is away (%s): %s", error, self._mode)
        self._is_away = True
        self._alone.fill()
        for account, lease_id, held in self._shared.running():
            self._alone.occupy(lease_id, account, self._shares(decode(held.layers)))
        self._on_change(True)

    def _came_back(self) -> None:
        if self._is_away:
            log.warning("the shared ledger is back")
            self._is_away = False
            self._on_change(False)

    async def _end(self, lease_id: str, ending: Ending) -> bool:
        """True if the shared ledger did not answer: it will be told."""
        is_ended = await self._end_in(self._alone, lease_id, ending)
        if self._is_alone(ending.account, lease_id):
            self._shared.end_alone(ending.account, lease_id, ending.tokens)
            self._keep(lease_id, ending)
            return is_ended
        try:
            return await self._end_in(self._shared, lease_id, ending)
        except LedgerUnavailable:
            self._keep(lease_id, ending)
            return True

    async def _end_in(self, ledger: "MemoryLedger | ScriptedLedger", lease_id: str, ending: Ending) -> bool:
        if ending.tokens is None:
            return await ledger.release(lease_id, ending.account)
        return await ledger.settle(lease_id, ending.account, ending.tokens)

    def _keep(self, lease_id: str, ending: Ending) -> None:
        self._endings[lease_id] = ending
        if len(self._endings) > MAX_ENDINGS:
            self._endings.popitem(last=False)
            log.error("an ending is forgotten: the shared ledger has been away for too long")

    def _doubt(self, lease_id: str, account: str) -> None:
        self._doubts[lease_id] = account
        if len(self._doubts) > MAX_DOUBTS:
            self._doubts.popitem(last=False)  # if it was admitted, it expires

    async def _hand_in(self) -> None:
        """Endings before doubts; what is wrong with one of them is not the others' affair."""
        waiting = [*self._endings.items(), *((doubt, Ending(of, None)) for doubt, of in self._doubts.items())]
        for lease_id, ending in waiting:
            try:
                await self._end_in(self._shared, lease_id, ending)
            except LedgerUnavailable:
                if not self._shared.is_up:
                    return
                continue
            except Exception:
                log.exception("the end of lease %s can't be handed in", lease_id)
            if self._endings.get(lease_id) is ending:
                del self._endings[lease_id]
            self._doubts.pop(lease_id, None)


def _has_budget(limits: Limits) -> bool:
    return any(dimension.kind is Kind.BUDGET for dimension, _ in limits.enforced())


def _share(limits: Limits, max_gateways: int) -> Limits:
    shares = {d.value: limit // max_gateways for d, limit in limits.items() if d.kind is not Kind.BUDGET}
    return Limits(**shares, shadow=limits.shadow - {d for d in Dimension if d.kind is Kind.BUDGET})
