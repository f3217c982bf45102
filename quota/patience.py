"""A time limit that a busy event loop does not trip."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

TICKS = 5


@asynccontextmanager
async def patience(seconds: float) -> AsyncIterator[None]:
    """Raise TimeoutError in the block after `seconds`, not counting time in which the event loop was held up.

    The limit is `TICKS` timers, one after the other: however long something else holds the loop, it uses up
    one of them at most, and what the other side sent meanwhile is read before the next.
    """
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def wait(ticks: int) -> None:
        nonlocal timer
        timer = loop.call_later(seconds / TICKS, tick, ticks)

    def tick(ticks: int) -> None:
        if ticks > 1:
            wait(ticks - 1)
        else:
            limit.reschedule(loop.time())

    async with asyncio.timeout(None) as limit:
        wait(TICKS)
        try:
            yield
        finally:
            timer.cancel()
