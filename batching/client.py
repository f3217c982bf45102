"""A gateway's handle on one worker: submit a request, receive its deltas, abort it."""

from __future__ import annotations

import asyncio

from batching.protocol import Abort, Deltas, Submit, frame, from_worker, read_frame
from batching.stats import WorkerStats
from engines.types import ErrorCode, FinishReason, GenerationRequest, OutputDelta, RequestError

RESTART_HINT_MS = 2000  # about what a worker needs to come back


class Receiver:
    """One request's deltas. Those that arrive while nobody reads are merged, so a slow reader costs no memory."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self._unread: OutputDelta | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, delta: OutputDelta) -> None:
        if self._unread is None:
            self._unread = delta
        else:
            _merge(self._unread, delta)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def get(self) -> OutputDelta:
        """Everything since the last call; waits while there is nothing. One reader at a time."""
        if self._unread is None:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        assert self._unread is not None
        delta, self._unread = self._unread, None
        return delta


def _merge(first: OutputDelta, then: OutputDelta) -> None:
    first.token_ids.extend(then.token_ids)
    first.finish_reason = then.finish_reason
    first.error = then.error


class WorkerClient:
    """One connection. When it breaks, every open request ends in an error and `closed` is set."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.stats = WorkerStats()
        self.closed = asyncio.Event()
        self._writer = writer
        self._receivers: dict[str, Receiver] = {}
        self._reading = asyncio.create_task(self._read(reader))

    @classmethod
    async def connect(cls, socket_path: str) -> WorkerClient:
        return cls(*await asyncio.open_unix_connection(socket_path))

    def submit(self, request: GenerationRequest) -> Receiver:
        """Never fails: what goes wrong arrives as the receiver's last delta."""
        receiver = Receiver(request.request_id)
        if self.closed.is_set():
            receiver.put(_lost(request.request_id))
            return receiver
        self._receivers[request.request_id] = receiver  # before the work: its first delta may come at once
        self._writer.write(frame(Submit(request)))
        return receiver

    def abort(self, request_id: str) -> None:
        """Stop the work and forget its receiver; harmless when it has ended."""
        if self._receivers.pop(request_id, None) is not None and not self.closed.is_set():
            self._writer.write(frame(Abort(request_id)))

    async def close(self) -> None:
        self._writer.close()
        await self._reading

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                message = from_worker.decode(await read_frame(reader))
                if isinstance(message, Deltas):
                    self._deliver(message.deltas)
                else:
                    self.stats = message.stats
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the worker is gone: the requests that it had are told below
        finally:
            self._fail_all()

    def _deliver(self, deltas: list[OutputDelta]) -> None:
        for delta in deltas:
            receiver = self._receivers.get(delta.request_id)
            if receiver is None:  # aborted; this was under way
                continue
            if delta.finish_reason is not None:
                del self._receivers[delta.request_id]
            receiver.put(delta)

    def _fail_all(self) -> None:
        self.closed.set()
        self._writer.close()
        self.stats.running = self.stats.waiting = self.stats.kv_blocks_used = 0
        receivers, self._receivers = self._receivers, {}
        for request_id, receiver in receivers.items():
            receiver.put(_lost(request_id))


def _lost(request_id: str) -> OutputDelta:
    error = RequestError(ErrorCode.ENGINE_FAILED, "The engine stopped while it was working on this request.")
    return OutputDelta(request_id, finish_reason=FinishReason.ERROR, error=error)


def unavailable(request_id: str) -> OutputDelta:
    """What a request gets while its worker is (re)starting."""
    error = RequestError(ErrorCode.ENGINE_FAILED, "The engine is starting.", RESTART_HINT_MS)
    return OutputDelta(request_id, finish_reason=FinishReason.ERROR, error=error)
