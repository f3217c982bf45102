"""Requests that may be what kills engines: they are run one at a time, so that exactly the one that does is refused."""

from __future__ import annotations

import asyncio
import hashlib
import math
from array import array
from collections import OrderedDict
from typing import TYPE_CHECKING

from server.errors import ServerError

if TYPE_CHECKING:  # whose deployments have a quarantine each
    from server.job import PreparedPrompt

REMEMBERED = 600.0  # seconds
MAX_REMEMBERED = 4096  # of each kind


class Quarantine:
    """Of one deployment, in one gateway. Who holds `turn` is the only suspect on any engine.

    A request that ended with its engine's death is a suspect when it comes again, until it has been given a token. One
    that was the only suspect at a death is refused from then on.
    """

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self._suspects = _Recent()
        self._refused = _Recent()

    def suspect(self, account: str, prompt: PreparedPrompt, now: float) -> None:
        self._suspects.add(_print_of(account, prompt), now)

    def refuse(self, account: str, prompt: PreparedPrompt, now: float) -> None:
        self._refused.add(_print_of(account, prompt), now)

    def is_suspect(self, account: str, prompt: PreparedPrompt, now: float) -> bool:
        return self._suspects.has(account, prompt, now)

    def is_refused(self, account: str, prompt: PreparedPrompt, now: float) -> bool:
        return self._refused.has(account, prompt, now)

    def acquit(self, account: str, prompt: PreparedPrompt) -> None:
        self._suspects.drop(_print_of(account, prompt))


class _Recent:
    """Fingerprints of requests, for a time. Nothing is computed while there are none."""

    def __init__(self) -> None:
        self._ends: OrderedDict[bytes, float] = OrderedDict()

    def add(self, fingerprint: bytes, now: float) -> None:
        self._ends.pop(fingerprint, None)
        self._ends[fingerprint] = now + REMEMBERED
        if len(self._ends) > MAX_REMEMBERED:
            self._ends.popitem(last=False)

    def has(self, account: str, prompt: PreparedPrompt, now: float) -> bool:
        return bool(self._ends) and self._ends.get(_print_of(account, prompt), -math.inf) > now

    def drop(self, fingerprint: bytes) -> None:
        self._ends.pop(fingerprint, None)


def _print_of(account: str, prompt: PreparedPrompt) -> bytes:
    """What an engine is given of it, and by whom: nobody can have another's request refused."""
    digest = hashlib.blake2b(account.encode() + b"\0", digest_size=16)
    digest.update(array("q", prompt.token_ids).tobytes())
    digest.update(f"\0{prompt.text}\0{prompt.sampling}".encode())
    return digest.digest()


def refused() -> ServerError:
    """No client should send it again by itself."""
    message = "This request was being worked on when the engine stopped, twice: it is refused."
    return ServerError(message, code="request_stops_engine", headers={"x-should-retry": "false"})
