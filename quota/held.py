"""What one gateway has admitted and not ended yet: told to the shared ledger if that does not know it."""

import time
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

MAX_HELD = 100_000  # more than a gateway runs at once: leases that nobody ends are not kept for ever
ALONE = ""
"""The epoch of what this gateway admitted by itself: no memory of the shared ledger knows it."""


@dataclass(frozen=True, slots=True)
class HeldLease:
    """`layers` as `encoding.encode` writes them; `epoch` names the memory that knows the lease.

    `seen` is when its gateway last said that it runs it, `ended` when that was over: seconds of `time.monotonic()`.
    """

    layers: bytes
    tokens: int
    admitted_ms: int
    epoch: str
    seen: float
    ended: float | None = None

    def told(self) -> tuple[int, int, bytes, int]:
        """As adopt.lua takes it."""
        age_ms = 0 if self.ended is None else round(1000 * (time.monotonic() - self.ended))
        return self.tokens, self.admitted_ms, self.layers, age_ms


class HeldLeases:
    """A lease that its gateway has not been heard of for `lease_s` seconds is expired: others may have its place."""

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._held: OrderedDict[tuple[str, str], HeldLease] = OrderedDict()

    def get(self, account: str, lease_id: str) -> HeldLease | None:
        return self._held.get((account, lease_id))

    def add(self, account: str, lease_id: str, layers: bytes, tokens: int, admitted_ms: int, epoch: str) -> None:
        self._held[account, lease_id] = HeldLease(layers, tokens, admitted_ms, epoch, time.monotonic())
        if len(self._held) > MAX_HELD:
            self._held.popitem(last=False)

    def end(self, account: str, lease_id: str, tokens: int) -> None:
        """It used so many tokens. It is held until the shared ledger knows that."""
        held = self._held.get((account, lease_id))
        if held is not None and held.ended is None:
            self._held[account, lease_id] = replace(held, tokens=tokens, ended=time.monotonic())

    def drop(self, account: str, lease_id: str) -> None:
        self._held.pop((account, lease_id), None)

    def touch(self, account: str, lease_ids: Iterable[str]) -> None:
        """Their gateway runs them; one that was stopped for too long can't say so any more."""
        now = time.monotonic()
        for lease_id in lease_ids:
            held = self._held.get((account, lease_id))
            if held is not None and now - held.seen < self._lease_s:
                self._held[account, lease_id] = replace(held, seen=now)

    def belong(self, account: str, lease_ids: Iterable[str], epoch: str) -> None:
        """These are known to the memory of this name now."""
        for lease_id in lease_ids:
            if held := self._held.get((account, lease_id)):
                self._held[account, lease_id] = replace(held, epoch=epoch)

    def forgotten(self, account: str, lease_ids: Iterable[str], epoch: str) -> dict[str, HeldLease]:
        """Those of these that another memory than the one of this name knows, or none."""
        found = ((lease_id, self._held.get((account, lease_id))) for lease_id in lease_ids)
        return {lease_id: lease for lease_id, lease in found if lease is not None and lease.epoch != epoch}

    def running(self) -> Iterator[tuple[str, str, HeldLease]]:
        """Account, lease id and lease of all that have neither ended nor expired."""
        now = time.monotonic()
        for (account, lease_id), lease in self._held.items():
            if lease.ended is None and now - lease.seen < self._lease_s:
                yield account, lease_id, lease

    def forgotten_by_account(self, epoch: str) -> Mapping[str, dict[str, HeldLease]]:
        """All that run, and that another memory than the one of this name knows, or none."""
        accounts: defaultdict[str, dict[str, HeldLease]] = defaultdict(dict)
        for account, lease_id, lease in self.running():
            if lease.epoch != epoch:
                accounts[account][lease_id] = lease
        return accounts
