"""A gateway's handle on one worker: submit a request, receive its deltas, abort it."""

from __future__ import annotations

import asyncio
import logging
import math
from itertools import count

from batching.protocol import (
    Abort,
    Action,
    Control,
    Controlled,
    Deltas,
    FromWorker,
    ProtocolError,
    Stats,
    Submit,
    frame,
    from_worker,
    read_message,
)
from batching.stats import WorkerStats
from engines.base import EngineError
from engines.types import ErrorCode, GenerationRequest, OutputDelta, RequestError

RESTART_HINT_MS = 2000  # about what a worker needs to come back
LOOKS = 10  # at whether the worker has given a sign of life, within the time that it has for one
MAX_UNSENT_BYTES = 64 * 2**20  # to a worker that has stopped reading

log = logging.getLogger("penstock.client")


class Receiver:
    """One request's deltas. Those that arrive while nobody reads are merged, so a slow reader costs no memory.

    `ready` is set when there is something to take; several receivers may share one.
    """

    def __init__(self, request_id: str, ready: asyncio.Event | None = None) -> None:
        self.request_id = request_id
        self.ready = ready or asyncio.Event()
        self._unread: OutputDelta | None = None

    def put(self, delta: OutputDelta) -> None:
        if self._unread is None:
            self._unread = delta
        else:
            _merge(self._unread, delta)
        self.ready.set()

    def take(self) -> OutputDelta | None:
        """Everything since the last call."""
        delta, self._unread = self._unread, None
        return delta

    async def get(self) -> OutputDelta:
        """As `take`, but waits while there is nothing. One reader at a time."""
        while (delta := self.take()) is None:
            self.ready.clear()
            await self.ready.wait()
        return delta


def _merge(first: OutputDelta, then: OutputDelta) -> None:
    if not first.has_output:
        first.cached_tokens, first.queue_seconds = then.cached_tokens, then.queue_seconds
    first.token_ids.extend(then.token_ids)
    first.text += then.text
    first.num_text_tokens += then.num_text_tokens
    first.prompt_tokens = first.prompt_tokens or then.prompt_tokens
    first.finish_reason = then.finish_reason
    first.error = then.error
    first.computed_tokens = max(first.computed_tokens, then.computed_tokens)  # the end of a connection knows of none
    first.vectors |= then.vectors
    first.logprobs.extend(then.logprobs)
    first.prompt_logprobs.extend(then.prompt_logprobs)


class WorkerClient:
    """One connection. When it breaks, or nothing has come for `silence` seconds, every open request ends in an error
    and `closed` is set.

    `num_lost`: how many requests the worker had then, as far as is known here. `hangs`: it was silent.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        stats: WorkerStats,
        silence: float = math.inf,
    ) -> None:
        self.stats = stats
        self.closed = asyncio.Event()
        self.num_lost = 0
        self.hangs = False
        self._has_spoken = True
        self._writer = writer
        self._receivers: dict[str, Receiver] = {}
        self._controls: dict[int, asyncio.Future[None]] = {}
        self._numbers = count()
        self._reading = asyncio.create_task(self._read(reader))
        self._listening = asyncio.create_task(self._listen(silence / LOOKS)) if silence < math.inf else None

    @classmethod
    async def connect(cls, socket_path: str, silence: float = math.inf) -> WorkerClient:
        """Returns when the worker serves: it greets with a report. Raises OSError."""
        reader, writer = await asyncio.open_unix_connection(socket_path)
        try:
            greeting = await read_message(reader, from_worker)
            if not isinstance(greeting, Stats):
                raise ProtocolError("no greeting")
        except (asyncio.IncompleteReadError, ProtocolError) as error:
            writer.close()
            raise ConnectionError(f"no worker answers at {socket_path}: {error}") from error
        except BaseException:
            writer.close()
            raise
        return cls(reader, writer, greeting.stats, silence)

    def submit(self, request: GenerationRequest, ready: asyncio.Event | None = None) -> Receiver:
        """Never fails: what goes wrong arrives as the receiver's last delta."""
        receiver = Receiver(request.request_id, ready)
        if self.closed.is_set():
            receiver.put(unavailable(request.request_id))
            return receiver
        if self._writer.transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            receiver.put(unavailable(request.request_id))
            return receiver
        message = frame(Submit(request))
        self._receivers[request.request_id] = receiver  # before the work: its first delta may come at once
        self._writer.write(message)
        return receiver

    def abort(self, request_id: str) -> None:
        """Stop the work: the receiver's last delta comes soon. Harmless when it has ended."""
        if request_id in self._receivers and not self.closed.is_set():
            self._writer.write(frame(Abort(request_id)))

    def forget(self, request_id: str) -> None:
        """Nobody reads this request's receiver any more."""
        self._receivers.pop(request_id, None)

    async def control(self, action: Action, text: str = "") -> None:
        """Returns when it is done, which may take long; who cancels this call stops nothing.

        Raises EngineError with the worker's word, ConnectionError when it ends before.
        """
        if self.closed.is_set():
            raise ConnectionError("the worker is gone")
        number = next(self._numbers)
        done = self._controls[number] = asyncio.get_running_loop().create_future()
        self._writer.write(frame(Control(number, action, text)))
        try:
            await done
        finally:
            del self._controls[number]

    async def close(self) -> None:
        """At once: a worker that has stopped reading would never take what is still to be sent."""
        self._writer.transport.abort()
        await self._reading

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                self._take(await read_message(reader, from_worker))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the worker is gone: the requests that it had are told below
        except ProtocolError as error:
            log.error("a worker sent what is no message: %s", error)
        finally:
            self._fail_all()

    async def _listen(self, interval: float) -> None:
        """It counts looks, not time: when it was we who stood still, the worker has as long as ever."""
        num_silent = 0
        while num_silent < LOOKS:
            await asyncio.sleep(interval)
            num_silent = 0 if self._has_spoken else num_silent + 1
            self._has_spoken = False
        log.error("a worker gives no sign of life: its requests are taken from it")
        self.hangs = True
        self._writer.transport.abort()

    def _take(self, message: FromWorker) -> None:
        self._has_spoken = True
        match message:
            case Deltas(deltas):
                self._deliver(deltas)
            case Stats(stats):
                self.stats = stats
            case Controlled(number, error):
                if (done := self._controls.get(number)) is not None and not done.done():
                    done.set_exception(EngineError(error)) if error else done.set_result(None)

    def _deliver(self, deltas: list[OutputDelta]) -> None:
        for delta in deltas:
            receiver = self._receivers.get(delta.request_id)
            if receiver is None:  # forgotten; this was under way
                continue
            if delta.finish_reason is not None:
                del self._receivers[delta.request_id]
            receiver.put(delta)

    def _fail_all(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
        self.num_lost = max(len(self._receivers), self.stats.running + self.stats.waiting)
        self.closed.set()
        self._writer.close()
        self.stats.running = self.stats.waiting = self.stats.kv_blocks_used = self.stats.kv_blocks = 0
        for done in self._controls.values():
            if not done.done():
                done.set_exception(ConnectionError("the worker is gone"))
        receivers, self._receivers = self._receivers, {}
        for request_id, receiver in receivers.items():
            receiver.put(_lost(request_id))


def _lost(request_id: str) -> OutputDelta:
    message = "The engine stopped while it was working on this request."
    error = RequestError(ErrorCode.ENGINE_FAILED, message, RESTART_HINT_MS)
    return OutputDelta.failed(request_id, error)


def unavailable(request_id: str) -> OutputDelta:
    """What a request gets while its worker is (re)starting, or has stopped reading."""
    error = RequestError(ErrorCode.ENGINE_FAILED, "The engine can't be reached at the moment.", RESTART_HINT_MS)
    return OutputDelta.failed(request_id, error)
