"""Work that keeps a processor busy, away from the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def off_loop_if(is_long: bool, work: Callable[[], T]) -> T:
    """What `work` returns or raises. Short work is done here: a thread would cost more than it."""
    return await asyncio.to_thread(work) if is_long else work()
