"""A worker on its way out: what comes is refused, what runs may finish, or is cut; then its engine is unloaded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from typing import Protocol

import msgspec

from batching.protocol import Action, Control, Controlled
from engines.base import EngineError
from engines.types import ErrorCode, FinishReason, GenerationRequest, OutputDelta, RequestError

LOOK_INTERVAL = 0.02  # seconds between looks at whether anything is left

log = logging.getLogger("penstock.worker")


class Remote(Protocol):
    """An engine whose model another server runs (`engines.base.StreamEngine`)."""

    async def check_unload(self) -> None: ...

    async def unload(self) -> None: ...

    def resume(self) -> None: ...


class Departure:
    """Belongs to the worker's event loop. `left` are the ids of its requests, `is_sent` says whether all that it has
    to say is on its way to the gateways."""

    def __init__(
        self,
        left: Collection[str],
        is_sent: Callable[[], bool],
        abort: Callable[[str], None],
        remote: Remote | None,
    ) -> None:
        self.refusal: RequestError | None = None  # of every new request that comes now
        self._cut: RequestError | None = None  # of those that ran, and of any that comes
        self._left, self._is_sent, self._abort, self._remote = left, is_sent, abort, remote

    async def carry_out(self, control: Control) -> Controlled:
        """To the end: until nothing is left, or what runs the model has unloaded it."""
        error = RequestError(ErrorCode.UNLOADED, control.text)
        try:
            match control.action:
                case Action.CHECK if self._remote is not None:
                    await self._remote.check_unload()
                case Action.DRAIN:
                    self.refusal = error
                    await self._until_nothing_is_left()
                case Action.CUT:
                    self.refusal = self.refusal or error
                    self._cut = error
                    for request_id in list(self._left):
                        self._abort(request_id)
                    await self._until_nothing_is_left()
                case Action.UNLOAD if self._remote is not None:
                    await self._remote.unload()
                case Action.RESUME:
                    self.refusal = self._cut = None
                    if self._remote is not None:
                        self._remote.resume()
        except EngineError as failure:
            return Controlled(control.number, str(failure))
        except Exception:  # whatever it is: somebody waits for an answer
            log.exception("%s failed", control.action)
            return Controlled(control.number, f"its worker failed at the step {control.action}; see the log")
        return Controlled(control.number)

    def refused(self, request: GenerationRequest) -> OutputDelta | None:
        """What another engine had begun is among what runs: it may finish, until that is cut."""
        error = self._cut if request.is_moved else self.refusal
        if error is None:
            return None
        return OutputDelta.failed(request.request_id, error)

    def as_told(self, delta: OutputDelta) -> OutputDelta:
        """An abort of ours is no wish of its client's. What was computed is still charged."""
        if self._cut is None or delta.finish_reason is not FinishReason.ABORT:
            return delta
        return msgspec.structs.replace(delta, finish_reason=FinishReason.ERROR, error=self._cut)

    async def _until_nothing_is_left(self) -> None:
        while self._left or not self._is_sent():  # noqa: ASYNC110 - requests should not pay for being watched
            await asyncio.sleep(LOOK_INTERVAL)
