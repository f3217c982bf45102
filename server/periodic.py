"""What a gateway does again and again beside its requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from server.reachable import DATABASE_FAULTS

log = logging.getLogger("penstock.periodic")


async def periodically(work: Callable[[], Awaitable[object]], every: float, what: str) -> None:
    """Every so many seconds, until it is cancelled. `what` is said in the log of a turn that failed."""
    while True:
        await asyncio.sleep(every)
        await attempt(work, what)


async def attempt(work: Callable[[], Awaitable[object]], what: str) -> None:
    """One turn. The next must not depend on it, whatever was wrong."""
    try:
        await work()
    except DATABASE_FAULTS as error:
        log.warning("%s failed: %s", what, type(error).__name__)
    except Exception:
        log.exception("%s failed", what)
