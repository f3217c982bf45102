"""What one gateway has admitted on a shared ledger and not ended yet: told again if the ledger loses its memory."""

from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

MAX_HELD = 100_000  # more than a gateway runs at once: leases that nobody ends are not kept for ever


@dataclass(frozen=True, slots=True)
class HeldLease:
    """`layers` as `encoding.encode` writes them; `epoch` names the memory that knows the lease."""

    layers: bytes
    tokens: int
    admitted_ms: int
    epoch: str

    def told(self) -> tuple[int, int, bytes]:
        """As adopt.lua takes it."""
        return self.tokens, self.admitted_ms, self.layers


class HeldLeases:
    def __init__(self) -> None:
        self._held: OrderedDict[tuple[str, str], HeldLease] = OrderedDict()

    def add(self, account: str, lease_id: str, lease: HeldLease) -> None:
        self._held[account, lease_id] = lease
        if len(self._held) > MAX_HELD:
            self._held.popitem(last=False)

    def drop(self, account: str, lease_id: str) -> None:
        self._held.pop((account, lease_id), None)

    def gone(self, account: str, lease_ids: Iterable[str]) -> list[str]:
        """Those of these that are not held any more."""
        return [lease_id for lease_id in lease_ids if (account, lease_id) not in self._held]

    def belong(self, account: str, lease_ids: Iterable[str], epoch: str) -> None:
        """These are known to the memory of this name now."""
        for lease_id in lease_ids:
            if held := self._held.get((account, lease_id)):
                self._held[account, lease_id] = replace(held, epoch=epoch)

    def forgotten(self, account: str, lease_ids: Iterable[str], epoch: str) -> dict[str, HeldLease]:
        """Those of these that were admitted in another memory than the one of this name."""
        found = ((lease_id, self._held.get((account, lease_id))) for lease_id in lease_ids)
        return {lease_id: lease for lease_id, lease in found if lease is not None and lease.epoch != epoch}

    def forgotten_by_account(self, epoch: str) -> Mapping[str, dict[str, HeldLease]]:
        """All that were admitted in another memory than the one of this name."""
        accounts: defaultdict[str, dict[str, HeldLease]] = defaultdict(dict)
        for (account, lease_id), lease in self._held.items():
            if lease.epoch != epoch:
                accounts[account][lease_id] = lease
        return accounts
