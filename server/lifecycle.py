"""Loading and unloading one deployment, in the process that its workers belong to."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence

from batching.child import start_all
from batching.client import WorkerClient
from batching.protocol import Action
from engines.base import EngineError
from engines.types import EngineInfo
from server.model_state import ModelState, Phase
from server.registry import Deployment

CHECK_TIMEOUT = 15.0  # seconds
CUT_TIMEOUT = 5.0  # in which what is cut is told
MOVE_TIME = 0.2  # in which a gateway has sent on what a worker that died was at
UNLOAD_TIMEOUT = 120.0

Announce = Callable[[bool], Awaitable[None]]
"""Tell everybody how the models stand; with True, return when they know."""

log = logging.getLogger("penstock.lifecycle")


class ModelControlError(Exception):
    """A load or an unload that was not carried out. The message is one line for the operator."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class Lifecycle:
    """Calls are carried out one after another; an unload gives up a load that is under way or still waits."""

    def __init__(self, deployment: Deployment, drain: float, announce: Announce) -> None:
        """`drain`: seconds that running requests have, where a call does not say."""
        self._deployment = deployment
        self._drain_seconds = drain
        self._announce = announce
        self._promises = [_promise(replica.link.info) for replica in deployment.replicas]
        self._turn = asyncio.Lock()
        self._num_unloads = 0  # asked for, in all
        self._loading: asyncio.Task[None] | None = None
        self._patience: asyncio.Timeout | None = None  # of the drain that is under way

    @property
    def state(self) -> ModelState:
        return self._deployment.state

    # --- load

    async def load(self) -> None:
        """Returns when it serves; nothing is done where it does. Raises ModelControlError."""
        num_unloads = self._num_unloads
        async with self._turn:
            if self._num_unloads != num_unloads:
                raise self._given_up()
            if self.state.phase is not Phase.READY:
                await self._load()

    async def _load(self) -> None:
        await self._enter(Phase.LOADING)
        self._loading = asyncio.create_task(self._start_workers())
        try:
            await asyncio.wait([self._loading])
            failure = None if self._loading.cancelled() else self._loading.exception()
            if self._loading.cancelled():
                await self._enter(Phase.UNLOADED)
                raise self._given_up()
        finally:
            self._loading.cancel()
            await asyncio.gather(self._loading, return_exceptions=True)
            self._loading = None
        if failure is not None:
            await self._enter(Phase.FAILED, _in_words(failure))
            message = f"The model {self._deployment.id} could not be loaded: {self.state.reason}"
            raise ModelControlError(message, "load_failed")
        await self._enter(Phase.READY)

    async def _start_workers(self) -> None:
        """All or none. Raises EngineError."""
        links = [replica.link for replica in self._deployment.replicas]
        await start_all(links)
        if [_promise(link.info) for link in links] != self._promises:
            await self._stop_workers()
            raise EngineError("the model is another one than at the start of the server: start the server again")

    def _given_up(self) -> ModelControlError:
        return ModelControlError(f"The model {self._deployment.id} was told to unload meanwhile.", "superseded")

    # --- unload

    async def unload(self, drain_seconds: float | None) -> None:
        """Returns when its workers have ended; nothing is done where they have. Raises ModelControlError: it is as
        before. Who asks again may shorten the drain of the unload that is under way."""
        drain = self._drain_seconds if drain_seconds is None else drain_seconds
        self._num_unloads += 1
        self._hurry(drain)
        if self._loading is not None:
            self._loading.cancel()
        async with self._turn:
            if self.state.phase is Phase.READY:
                await self._unload(drain)
            elif self.state.phase is Phase.FAILED:
                await self._enter(Phase.UNLOADED)

    def _hurry(self, drain: float) -> None:
        if self._patience is not None and not self._patience.expired() and (until := self._patience.when()) is not None:
            self._patience.reschedule(min(until, asyncio.get_running_loop().time() + drain))

    async def _unload(self, drain: float) -> None:
        try:
            self._let_restart(False)
            workers = await self._workers_that_answer()
            await self._enter(Phase.UNLOADING)
            await self._drain(workers, drain)
            await self._all(workers, Action.UNLOAD, UNLOAD_TIMEOUT)
        except Exception as error:
            await self._resume()
            message = f"The model {self._deployment.id} could not be unloaded: {_in_words(error)}"
            raise ModelControlError(message, "unload_failed") from None
        await self._stop_workers()
        await self._enter(Phase.UNLOADED, self._what_is_left(workers))

    async def _workers_that_answer(self) -> list[WorkerClient]:
        """One that hangs or has died has nothing to lose. Raises EngineError where what runs the model refuses."""
        clients = [replica.client for replica in self._deployment.replicas]
        present = [client for client in clients if client is not None and not client.closed.is_set()]
        answers = await asyncio.gather(*(_answers(client) for client in present))
        return [client for client, is_there in zip(present, answers, strict=True) if is_there]

    async def _drain(self, workers: Sequence[WorkerClient], drain: float) -> None:
        """Requests that come are refused by the workers from here on, whatever their gateways know."""
        refusal = f"The model {self._deployment.id} is unloaded."
        try:
            async with asyncio.timeout(drain) as self._patience:
                await self._drain_all(workers, refusal)
        except TimeoutError:
            self._patience = None
            cut = f"The model {self._deployment.id} was unloaded before this request had ended."
            await self._all(workers, Action.CUT, CUT_TIMEOUT, cut)
        finally:
            self._patience = None

    async def _drain_all(self, workers: Sequence[WorkerClient], refusal: str) -> None:
        """What one that dies was at goes to the others, which may have had nothing left by then: they drain again."""
        while len(drained := await self._all(workers, Action.DRAIN, None, refusal)) < len(workers):
            workers = drained
            await asyncio.sleep(MOVE_TIME)

    async def _all(
        self, workers: Sequence[WorkerClient], action: Action, timeout: float | None, text: str = ""
    ) -> list[WorkerClient]:
        """Those that have done it. One that dies or hangs meanwhile is as good as ready to be ended.

        Raises EngineError.
        """

        async def has_done(worker: WorkerClient) -> bool:
            with contextlib.suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(timeout):
                    await worker.control(action, text)
                return True
            return False

        answers = await asyncio.gather(*(has_done(worker) for worker in workers))
        return [worker for worker, is_done in zip(workers, answers, strict=True) if is_done]

    async def _resume(self) -> None:
        """As before. Who was connected meanwhile has refused nothing, and is told in vain."""
        self._let_restart(True)
        clients = [client for replica in self._deployment.replicas if (client := replica.client) is not None]
        told = (self._all([client], Action.RESUME, CHECK_TIMEOUT) for client in clients)
        for answer in await asyncio.gather(*told, return_exceptions=True):
            if isinstance(answer, Exception):  # why it was not unloaded is what the operator is told
                log.error("model %s: a worker does not take requests again: %s", self._deployment.id, _in_words(answer))
        if self.state.phase is not Phase.READY:
            await self._enter(Phase.READY)

    def _let_restart(self, allowed: bool) -> None:
        """A worker that starts in mid-unload would load all of the model, and take requests."""
        for replica in self._deployment.replicas:
            replica.link.let_restart(allowed)

    async def _stop_workers(self) -> None:
        await asyncio.gather(*(replica.link.stop() for replica in self._deployment.replicas))

    def _what_is_left(self, workers: Sequence[WorkerClient]) -> str:
        if workers or self._deployment.engine != "triton":
            return ""
        return "no worker was there to unload it: on Triton it is as it was"

    # --- both

    async def _enter(self, phase: Phase, reason: str = "") -> None:
        self.state.phase, self.state.reason = phase, reason
        log.info("model %s: %s%s", self._deployment.id, phase, f": {reason}" if reason else "")
        await self._announce(phase is Phase.READY)  # that it is no more, its workers tell too: they refuse


async def _answers(client: WorkerClient) -> bool:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT):
            await client.control(Action.CHECK)
    except (TimeoutError, ConnectionError):
        return False
    return True


def _promise(info: EngineInfo | None) -> object:
    """What gateways have told clients of an engine, and check requests against."""
    return info and (
        info.max_model_len,
        info.vocab_size,
        info.takes_text,
        info.sampling,
        info.task,
        info.vectors,
        info.continuation,
        info.takes_grammars,
        info.tells_logprobs,
    )


def _in_words(failure: BaseException) -> str:
    if isinstance(failure, EngineError):
        return str(failure)
    log.error("model control failed", exc_info=failure)
    return f"{type(failure).__name__}; see the log"
