"""The process that owns one engine, its queue and its batcher. Started by `batching.supervisor`.

It reads one line of JSON (WorkerConfig) from its standard input, writes one (Started) when it serves or knows that it
can't, and ends when its standard input does: with the process that started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NoReturn, Protocol

import msgspec

from batching import logs
from batching.batcher import Batcher, Deliver
from batching.child import announce, outlive_parent, take_stdout
from batching.departure import Departure, Remote
from batching.protocol import (
    Control,
    Deltas,
    ProtocolError,
    Started,
    Stats,
    Submit,
    ToWorker,
    WorkerConfig,
    frame,
    read_message,
    to_worker,
)
from batching.scheduler import Scheduler
from batching.stats import WorkerStats
from batching.stream_batcher import StreamBatcher
from batching.text_scheduler import TextScheduler
from engines import registry
from engines.base import EngineError, StreamEngine, VectorEngine
from engines.types import GenerationRequest, OutputDelta

STATS_INTERVAL = 0.1  # seconds
MAX_UNSENT_BYTES = 64 * 2**20  # to a gateway that has stopped reading
EXIT_FAILED, EXIT_CANNOT_START = 1, 2

log = logging.getLogger("penstock.worker")


class AnyBatcher(Protocol):
    """What drives an engine. Every request that is added is answered, to its last delta, by way of `Deliver`."""

    def add(self, request: GenerationRequest) -> None: ...

    def abort(self, request_id: str) -> None: ...

    def snapshot(self) -> WorkerStats: ...

    async def run(self) -> None: ...


class Worker:
    """Serves any number of gateways: a request's deltas go to the connection that it came by."""

    def __init__(self, make_batcher: Callable[[Deliver], AnyBatcher], remote: Remote | None = None) -> None:
        """`remote`: the engine, where another server runs the model."""
        self._batcher = make_batcher(self._deliver)
        self._owners: dict[str, asyncio.StreamWriter] = {}
        self._gateways: set[asyncio.StreamWriter] = set()
        self._departure = Departure(self._owners.keys(), self._all_is_sent, self._batcher.abort, remote)
        self._controls: set[asyncio.Task[None]] = set()

    async def serve(self, listener: socket.socket) -> None:
        """Runs until the engine or the batcher fails; raises what they raised."""
        await asyncio.start_unix_server(self._serve_gateway, sock=listener)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._batcher.run())
            tasks.create_task(self._report())

    async def _serve_gateway(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._gateways.add(writer)
        self._send(writer, frame(Stats(self._batcher.snapshot())))
        try:
            while True:
                self._handle(await read_message(reader, to_worker), writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the gateway is gone: that is how it says goodbye; or we are
        except ProtocolError as error:
            log.error("a gateway sent what is no message, its connection is closed: %s", error)
        finally:
            self._forget_gateway(writer)

    def _handle(self, message: ToWorker, gateway: asyncio.StreamWriter) -> None:
        if isinstance(message, Submit):
            self._submit(message.request, gateway)
        elif isinstance(message, Control):
            task = asyncio.create_task(self._control(message, gateway))
            self._controls.add(task)
            task.add_done_callback(self._controls.discard)
        elif self._owners.get(message.request_id) is gateway:
            self._batcher.abort(message.request_id)

    def _submit(self, request: GenerationRequest, gateway: asyncio.StreamWriter) -> None:
        if request.request_id in self._owners:
            raise ProtocolError(f"request {request.request_id} is under way already")
        if (refused := self._departure.refused(request.request_id)) is not None:
            self._send(gateway, frame(Deltas([refused])))
            return
        self._owners[request.request_id] = gateway
        self._batcher.add(request)

    async def _control(self, message: Control, gateway: asyncio.StreamWriter) -> None:
        self._send(gateway, frame(await self._departure.carry_out(message)))

    def _all_is_sent(self) -> bool:
        return not any(gateway.transport.get_write_buffer_size() for gateway in self._gateways)

    def _forget_gateway(self, writer: asyncio.StreamWriter) -> None:
        self._gateways.discard(writer)
        writer.close()
        for request_id in [r for r, owner in self._owners.items() if owner is writer]:
            self._batcher.abort(request_id)

    def _deliver(self, deltas: list[OutputDelta]) -> None:
        """One message a gateway, with everything that this step has for it."""
        by_owner: defaultdict[asyncio.StreamWriter, list[OutputDelta]] = defaultdict(list)
        for delta in deltas:
            owner = self._owners[delta.request_id]
            by_owner[owner].append(self._departure.as_told(delta))
            if delta.finish_reason is not None:
                del self._owners[delta.request_id]
        for owner, its_deltas in by_owner.items():
            self._send(owner, frame(Deltas(its_deltas)))

    def _send(self, gateway: asyncio.StreamWriter, data: bytes) -> None:
        if gateway.is_closing():
            return
        if gateway.transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            log.error("a gateway has stopped reading: its connection is closed")
            gateway.transport.abort()
            return
        gateway.write(data)

    async def _report(self) -> None:
        last = b""
        while True:
            data = frame(Stats(self._batcher.snapshot()))
            if data != last:
                for gateway in self._gateways:
                    self._send(gateway, data)
            last = data
            await asyncio.sleep(STATS_INTERVAL)


def listen(socket_path: str) -> socket.socket:
    """A socket that only our user can connect to. Raises EngineError."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(socket_path)
        listener.bind(socket_path)
        os.chmod(socket_path, 0o600)
        listener.listen()
    except OSError as error:
        raise EngineError(f"can't listen at {socket_path}: {error.strerror or error}") from error
    return listener


def leave(socket_path: str, status: int) -> NoReturn:
    """End at once. The engine's thread may be in native code, which an orderly shutdown waits for or crashes in."""
    with contextlib.suppress(OSError):
        os.unlink(socket_path)
    os._exit(status)


def leave_with_parent(socket_path: str) -> None:
    """In a thread, since loading an engine takes minutes. The gateway ends us by closing our input, or by dying."""
    outlive_parent()
    leave(socket_path, 0)


def main() -> None:
    # Signals to the whole process group are the gateway's to handle: it drains first, then closes our input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # The engine's thread is mostly in Python between its operators; the socket's thread must not wait 5 ms for it.
    sys.setswitchinterval(0.0005)
    answer = take_stdout()
    config = msgspec.json.decode(sys.stdin.readline(), type=WorkerConfig)
    logs.configure(config.log_level)
    threading.Thread(target=leave_with_parent, args=(config.socket_path,), daemon=True).start()
    try:
        run(config, answer)
    except EngineError as error:
        announce(answer, Started(error=str(error)))
        leave(config.socket_path, EXIT_CANNOT_START)
    except BaseException:
        log.exception("the worker has failed")
        leave(config.socket_path, EXIT_FAILED)


def run(config: WorkerConfig, answer: int) -> None:
    """Load the engine, say so, and serve. Raises EngineError when it can't be built, later whatever a step raised."""
    listener = listen(config.socket_path)
    engine = registry.create(config.engine)
    if isinstance(engine, StreamEngine):
        announce(answer, Started(engine.info))
        worker = Worker(partial(StreamBatcher, engine, config.scheduler, config.restarts), remote=engine)
    elif isinstance(engine, VectorEngine):
        texts = TextScheduler(engine.info, config.scheduler)
        texts.stats.restarts = config.restarts
        announce(answer, Started(engine.info))
        worker = Worker(partial(Batcher, engine, texts))
    else:
        scheduler = Scheduler(engine.info, config.scheduler)
        scheduler.stats.restarts = config.restarts
        announce(answer, Started(replace(engine.info, max_model_len=scheduler.max_model_len)))
        worker = Worker(partial(Batcher, engine, scheduler))
    asyncio.run(worker.serve(listener))


if __name__ == "__main__":
    main()
