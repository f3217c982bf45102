"""The process that owns one engine, its queue and its batcher. Started by `batching.supervisor`.

It reads one line of JSON (WorkerConfig) from its standard input, writes one (Started) when it serves or knows that it
can't, and ends when its standard input does: with the process that started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

import msgspec

from batching import logs
from batching.batcher import Batcher, Deliver
from batching.child import announce, outlive_parent, take_stdout
from batching.departure import Departure, Remote
from batching.grammar_gate import GrammarGate
from batching.protocol import (
    Control,
    FromWorker,
    ProtocolError,
    Started,
    ToWorker,
    WorkerConfig,
    frame,
    read_message,
    to_worker,
)
from batching.relay import Relay, RelayConfig
from batching.shared_scheduler import AnyPlan, SharedEngine, SharedScheduler
from batching.stream_batcher import StreamBatcher
from batching.switchboard import AnyBatcher, Gateway, Switchboard
from batching.text_scheduler import TextScheduler
from engines import registry
from engines.base import EngineError, RemoteEngine, StreamEngine, VectorEngine
from engines.types import GenerationRequest, OutputDelta

MAX_UNSENT_BYTES = 64 * 2**20  # to a gateway that has stopped reading
EXIT_FAILED, EXIT_CANNOT_START = 1, 2

log = logging.getLogger("penstock.worker")


class SocketGateway:
    """A gateway at the other end of a connection."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    def send(self, message: FromWorker) -> None:
        if self._writer.is_closing():
            return
        if self._writer.transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            log.error("a gateway has stopped reading: its connection is closed")
            self._writer.transport.abort()
            return
        self._writer.write(frame(message))

    @property
    def is_sent(self) -> bool:
        return not self._writer.transport.get_write_buffer_size()

    def close(self) -> None:
        self._writer.close()


class Worker(Switchboard):
    """Serves any number of gateways, which connect to its socket."""

    def __init__(
        self,
        make_batcher: Callable[[Deliver], AnyBatcher],
        remote: Remote | None = None,
        step_timeout: float = math.inf,
    ) -> None:
        """`remote`: the engine, where another server runs the model."""
        super().__init__(make_batcher, step_timeout)
        self._departure = Departure(self._owners.keys(), self._all_is_sent, self._batcher.abort, remote)
        self._controls: set[asyncio.Task[None]] = set()

    async def serve(self, listener: socket.socket) -> None:
        """Runs until the engine or the batcher fails; raises what they raised."""
        await asyncio.start_unix_server(self._serve_gateway, sock=listener)
        await self.run()

    async def _serve_gateway(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        gateway = SocketGateway(writer)
        self.join(gateway)
        try:
            while True:
                self.handle(await read_message(reader, to_worker), gateway)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the gateway is gone: that is how it says goodbye; or we are
        except ProtocolError as error:
            log.error("a gateway sent what is no message, its connection is closed: %s", error)
        finally:
            self.leave(gateway)

    def handle(self, message: ToWorker, gateway: Gateway) -> None:
        if isinstance(message, Control):
            task = asyncio.create_task(self._control(message, gateway))
            self._controls.add(task)
            task.add_done_callback(self._controls.discard)
        else:
            super().handle(message, gateway)

    def refused(self, request: GenerationRequest) -> OutputDelta | None:
        return self._departure.refused(request)

    def as_told(self, delta: OutputDelta) -> OutputDelta:
        return self._departure.as_told(delta)

    async def _control(self, message: Control, gateway: Gateway) -> None:
        gateway.send(await self._departure.carry_out(message))

    def _all_is_sent(self) -> bool:
        return all(gateway.is_sent for gateway in self._gateways if isinstance(gateway, SocketGateway))


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
    if config.engine.name and not isinstance(engine, RemoteEngine):  # which says who it is once it is reached
        log.info("%s: %s", config.engine.name, engine.info.description)
    if isinstance(engine, RemoteEngine):
        started = partial(announce, answer, Started(engine.info))
        worker = Worker(partial(Relay, engine, RelayConfig(config.scheduler, config.restarts, started)), remote=engine)
    elif isinstance(engine, StreamEngine):
        announce(answer, Started(engine.info))
        worker = Worker(partial(StreamBatcher, engine, config.scheduler, config.restarts), remote=engine)
    elif isinstance(engine, VectorEngine):
        texts = TextScheduler(engine.info, config.scheduler)
        texts.stats.restarts = config.restarts
        announce(answer, Started(engine.info))
        worker = Worker(partial(Batcher, engine, texts), step_timeout=config.step_timeout)
    else:
        scheduler = SharedScheduler(engine.info, config.scheduler)
        drive = partial(Batcher[AnyPlan, Any], SharedEngine(engine), scheduler)
        scheduler.stats.restarts = config.restarts
        announce(answer, Started(replace(engine.info, max_model_len=scheduler.max_model_len)))
        worker = Worker(
            lambda deliver: GrammarGate(drive(deliver), engine.grammars, deliver), step_timeout=config.step_timeout
        )
    asyncio.run(worker.serve(listener))


if __name__ == "__main__":
    main()
