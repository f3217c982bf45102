"""Work that a cancellation may not interrupt."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import Any

log = logging.getLogger("penstock.shielded")


async def to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Cancelled or not, the work is done; then the cancellation goes on."""
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            log.info("cancelled while it failed: %r", error)
        raise
