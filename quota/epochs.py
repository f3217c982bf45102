"""Which memory of Redis it is: an epoch, kept in Redis and in durable storage, tells one that was lost."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from quota.ledger import LedgerUnavailable

REMEMBER_TIMEOUT = 2.0  # seconds

Ask = Callable[[str, str], Awaitable[bytes]]
"""Runs epoch.lua with a new epoch and whether an older one is remembered ("1" or "0")."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """A memory of Redis: its name, when the one before was lost (0: there was none), and the time now, in ms."""

    name: str
    lost_ms: int
    now_ms: int

    def is_young(self, recovery_ms: int) -> bool:
        """Whether gateways may still be telling it what they run."""
        return bool(self.lost_ms) and self.now_ms < self.lost_ms + recovery_ms


class Epochs:
    """`known` is the name last remembered, None if there never was one; `remember` keeps one in durable storage."""

    def __init__(self, ask: Ask, known: str | None, remember: Callable[[str], Awaitable[None]] | None) -> None:
        self.known = known
        self._ask = ask
        self._remember = remember

    async def learn(self) -> Epoch:
        """The present one, which is new if Redis has none: remembered before anything is admitted in it.

        Raises LedgerUnavailable.
        """
        value = await self._ask(secrets.token_hex(8), "0" if self.known is None else "1")
        name, lost_ms, now_ms = value.decode().split()
        if name != self.known:
            await self._keep(name)
            self.known = name
        return Epoch(name, int(lost_ms), int(now_ms))

    async def _keep(self, name: str) -> None:
        if self._remember is None:
            return
        try:
            async with asyncio.timeout(REMEMBER_TIMEOUT):
                await self._remember(name)
        except Exception as error:  # whatever it is: a loss of this memory would not be noticed
            reason = str(error) or type(error).__name__
            raise LedgerUnavailable(f"the epoch of Redis can't be remembered: {reason}") from error
