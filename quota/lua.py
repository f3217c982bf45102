"""The library of functions that the shared ledger runs in Redis."""

import hashlib
from dataclasses import dataclass, replace
from importlib import resources

from quota.encoding import CODES, EMPTY_RECORD, SLOTS
from quota.ledger import BUDGET_GRACE_MS, EXPIRED_LEASE_PERIODS, REAP_PER_CALL
from quota.levels import Dimension, Unit

ROWS_MS = 2000
"""How long after the end of a request its usage is in durable storage at the latest, unless that is away."""

_SHARED = ("store", "periods", "call", "turns", "counters", "layers", "charges", "commit", "sweep", "leases")
STEPS = ("reserve", "finish", "renew", "peek", "restore", "usage", "integrity", "adopt", "known", "epoch")

FORMAT = 2
"""Of what the steps keep, but for the dimensions: to be raised with every change that older ones would misread."""


@dataclass(frozen=True, slots=True)
class Library:
    """Lua text as FUNCTION LOAD takes it. Its names have a digest of the text: several may be in one Redis."""

    name: str
    text: str

    def function(self, step: str) -> str:
        """The name that FCALL knows a step by."""
        return f"{self.name}_{step}"


def load_library(lease_ms: int, audit: bool) -> Library:
    """All steps, behind what they share, behind the constants of the contract.

    A library and not scripts: of a script Redis runs all in every call, and making its helpers anew took longer than
    what most of them do.
    """
    constants = (
        f"local LEASE, PERIODS, REAP, GRACE = {lease_ms}, {EXPIRED_LEASE_PERIODS}, {REAP_PER_CALL}, {BUDGET_GRACE_MS}\n"
        f"local AUDIT, ROWS = {str(audit).lower()}, {ROWS_MS}\n"
    )
    shared = constants + _dimensions() + "".join(map(_read, _SHARED))
    steps = "".join(f"local function {step}(keys, arguments)\n{_read(step)}\nend\n" for step in STEPS)
    digest = hashlib.sha1((shared + steps).encode(), usedforsecurity=False).hexdigest()
    name = f"penstock_{digest[:16]}"
    library = Library(name, f"#!lua name={name}\n{shared}{steps}")
    registered = (f"redis.register_function('{library.function(step)}', {step})\n" for step in STEPS)
    return replace(library, text=library.text + "".join(registered))


def format_name() -> str:
    """Steps of another format neither read nor touch what these keep: to them it is another Redis."""
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


def _read(part: str) -> str:
    return (resources.files("quota") / "scripts" / f"{part}.lua").read_text()
