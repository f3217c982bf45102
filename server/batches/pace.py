"""Lines begin one after the other. Sixteen at once would keep the event loop from everybody else's tokens for as long
as sixteen requests take to be read, checked and tokenized, and lines that begin together end together."""

from __future__ import annotations

import asyncio

PAUSE = 0.01  # seconds: no more than a hundred lines a second begin in a gateway


class Pace:
    def __init__(self, pause: float = PAUSE) -> None:
        self._pause = pause
        self._turn = asyncio.Lock()

    async def wait(self) -> None:
        """For the turn to begin."""
        async with self._turn:
            await asyncio.sleep(self._pause)
