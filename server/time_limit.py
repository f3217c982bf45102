"""A time limit for one wait after another."""

from __future__ import annotations

import asyncio
import math
from types import TracebackType
from typing import Self

CLOCK = 0.001  # seconds by which a timer may be early


class TimeLimit:
    """`with limit(seconds): await ...` is `async with asyncio.timeout(seconds)`, for whoever waits again and again.

    Nearly every wait for a token ends long before its time is over. So there is one timer for all of them, which is
    left as it is when a wait ends, and looks at the time of the present wait when it rings. One wait at a time.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None  # asked for once: it is no cheap question
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._ends = math.inf  # of the present wait, by the loop's clock
        self._is_over = False
        self._timer: asyncio.TimerHandle | None = None
        self._rings = math.inf

    def __call__(self, seconds: float) -> Self:
        self._loop = self._loop or asyncio.get_running_loop()
        self._ends = self._loop.time() + seconds
        if self._ends < self._rings:
            self._set_timer(self._loop)
        return self

    def __enter__(self) -> None:
        self._task = asyncio.current_task(self._loop)
        assert self._task is not None
        self._cancelling = self._task.cancelling()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends = math.inf
        if not self._is_over:
            return
        self._is_over = False
        assert self._task is not None
        if self._task.uncancel() <= self._cancelling and isinstance(error, asyncio.CancelledError):
            raise TimeoutError from error

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._task, self._rings = None, None, math.inf

    def _set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._rings = self._ends
        self._timer = loop.call_at(self._ends, self._ring, loop)

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer, self._rings = None, math.inf
        if self._ends <= loop.time() + CLOCK:
            self._ends, self._is_over = math.inf, True
            assert self._task is not None
            self._task.cancel()
        elif self._ends < math.inf:
            self._set_timer(loop)
