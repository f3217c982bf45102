"""Work that keeps a processor busy, away from the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sized
from typing import Protocol, TypeVar

LONG_TOLD = 256  # tokens; of more of them a thread writes what they could have been: up to 21 each

T = TypeVar("T")


class Tells(Protocol):
    """A piece, or a whole answer."""

    @property
    def tokens(self) -> Sized | None: ...


def tells_much(parts: Iterable[Tells]) -> bool:
    count = 0
    for part in parts:  # asked at every token, where a generator would cost more than the answer
        if part.tokens:
            count += len(part.tokens)
    return count > LONG_TOLD


async def off_loop_if(is_long: bool, work: Callable[[], T]) -> T:
    """What `work` returns or raises. Short work is done here: a thread would cost more than it."""
    return await asyncio.to_thread(work) if is_long else work()
