"""Requests whose answers are held to a grammar wait before the queue until that is compiled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from batching.stats import WorkerStats
from engines.base import Grammars
from engines.types import ErrorCode, FinishReason, GenerationRequest, Grammar, OutputDelta, RequestError

log = logging.getLogger("penstock.grammars")


class Gated(Protocol):
    def add(self, request: GenerationRequest) -> None: ...

    def abort(self, request_id: str) -> None: ...

    def snapshot(self) -> WorkerStats: ...

    async def run(self) -> None: ...


class GrammarGate:
    """A batcher before a batcher. All methods belong to the worker's event loop."""

    def __init__(self, batcher: Gated, grammars: Grammars | None, deliver: Callable[[list[OutputDelta]], None]) -> None:
        self._batcher = batcher
        self._grammars = grammars
        self._deliver = deliver
        self._waiting: dict[str, asyncio.Task[None]] = {}

    def add(self, request: GenerationRequest) -> None:
        grammar = request.sampling.grammar
        if grammar is None or self._grammars is None or self._grammars.is_ready(grammar):
            self._batcher.add(request)  # which refuses what its engine can't do
        else:
            task = asyncio.create_task(self._prepare(request, grammar, self._grammars))
            self._waiting[request.request_id] = task

    async def _prepare(self, request: GenerationRequest, grammar: Grammar, grammars: Grammars) -> None:
        try:
            # An answer that was begun elsewhere is being read: it is not to end because strangers' grammars wait here.
            error = await grammars.prepare(grammar, request.account, was_used=bool(request.output_token_ids))
        except Exception:  # whatever it is, the request has to end
            log.exception("request %s: its grammar could not be prepared", request.request_id)
            error = RequestError(ErrorCode.ENGINE_FAILED, "The grammar of the answer could not be prepared.")
        finally:
            self._waiting.pop(request.request_id, None)  # an abort has taken it out already
        if error is None:
            self._batcher.add(request)
        else:
            self._deliver([OutputDelta.failed(request.request_id, error)])

    def abort(self, request_id: str) -> None:
        if (task := self._waiting.pop(request_id, None)) is None:
            self._batcher.abort(request_id)
        else:
            task.cancel()
            self._deliver([OutputDelta(request_id, finish_reason=FinishReason.ABORT)])

    def snapshot(self) -> WorkerStats:
        stats = self._batcher.snapshot()
        stats.waiting += len(self._waiting)
        return stats

    async def run(self) -> None:
        await self._batcher.run()
