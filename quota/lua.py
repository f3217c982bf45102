"""The scripts of the shared ledger, as they are sent to Redis."""

import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import Self

from quota.encoding import CODES, EMPTY_RECORD, SLOTS
from quota.ledger import BUDGET_GRACE_MS, EXPIRED_LEASE_PERIODS, REAP_PER_CALL
from quota.levels import Dimension, Unit

ROWS_MS = 2000
"""How long after the end of a request its usage is in durable storage at the latest, unless that is away."""

_LIBRARY = ("store", "periods", "turns", "counters", "layers", "charges", "commit", "sweep", "leases")
_SCRIPTS = ("reserve", "finish", "renew", "peek", "restore", "usage", "integrity", "adopt", "known")


FORMAT = 2
"""Of what the scripts keep, but for the dimensions: to be raised with every change that older scripts would misread."""


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
    constants = (
        f"local LEASE, PERIODS, REAP, GRACE = {lease_ms}, {EXPIRED_LEASE_PERIODS}, {REAP_PER_CALL}, {BUDGET_GRACE_MS}\n"
        f"local AUDIT, ROWS = {str(audit).lower()}, {ROWS_MS}\n"
    )
    library = constants + _dimensions() + "".join(map(_read, _LIBRARY))
    return {name: Script.of(library + _read(name)) for name in _SCRIPTS} | {"epoch": Script.of(_read("epoch"))}


def format_name() -> str:
    """Scripts of another format neither read nor touch what these keep: to them it is another Redis."""
    digest = hashlib.sha1(f"{FORMAT} {_dimensions()}".encode(), usedforsecurity=False)
    return digest.hexdigest()[:6]


def _dimensions() -> str:
    """What each dimension is, in their order, and where it stands in a layer's record (counters.lua)."""
    tables = {
        "CODES": [f"'{CODES[d]}'" for d in Dimension],
        "KINDS": [f"'{CODES[d][0]}'" for d in Dimension],
        "IS_TOKENS": [str(d.unit is Unit.TOKENS).lower() for d in Dimension],
        "SLOTS": [str(slot + 1) for slot in SLOTS.values()],  # Lua counts from 1
        "EMPTY": map(str, EMPTY_RECORD),
    }
    return "".join(f"local {name} = {{ {', '.join(values)} }}\n" for name, values in tables.items())


def _read(script: str) -> str:
    return (resources.files("quota") / "scripts" / f"{script}.lua").read_text()
