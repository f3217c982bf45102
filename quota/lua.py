"""The scripts of the shared ledger, as they are sent to Redis."""

import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import Self

from quota.encoding import CODES
from quota.ledger import BUDGET_GRACE_MS, EXPIRED_LEASE_PERIODS, REAP_PER_CALL
from quota.levels import Dimension, Kind

ROWS_MS = 2000
"""How long after the end of a request its usage is in durable storage at the latest, unless that is away."""

_LIBRARY = ("store", "counters", "commit", "leases")
_SCRIPTS = ("reserve", "finish", "renew", "peek", "restore", "usage", "integrity", "adopt", "known")


@dataclass(frozen=True, slots=True)
class Script:
    """Lua text and its digest, which is how Redis knows it."""

    text: str
    sha: str

    @classmethod
    def of(cls, text: str) -> Self:
        return cls(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def load_scripts(lease_ms: int, audit: bool) -> dict[str, Script]:
    """Each script behind the shared helpers, behind the constants of the contract. "epoch" stands alone: its key is of
    no account."""
    budgets = ", ".join(f"'{CODES[d]}'" for d in Dimension if d.kind is Kind.BUDGET)
    constants = (
        f"local LEASE, PERIODS, REAP, GRACE = {lease_ms}, {EXPIRED_LEASE_PERIODS}, {REAP_PER_CALL}, {BUDGET_GRACE_MS}\n"
        f"local AUDIT, BUDGETS, ROWS = {str(audit).lower()}, {{ {budgets} }}, {ROWS_MS}\n"
    )
    library = constants + "".join(map(_read, _LIBRARY))
    return {name: Script.of(library + _read(name)) for name in _SCRIPTS} | {"epoch": Script.of(_read("epoch"))}


def _read(script: str) -> str:
    return (resources.files("quota") / "scripts" / f"{script}.lua").read_text()
