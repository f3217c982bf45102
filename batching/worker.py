"""The process that owns one engine, its queue and its batcher. Started by `batching.supervisor`.

    python -m batching.worker  < one line of JSON (WorkerConfig)

It writes one line of JSON (Started) when it serves or knows that it can't, and ends when its standard input does:
with the process that started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections import defaultdict
from dataclasses import replace

import msgspec

from batching.batcher import Batcher
from batching.protocol import (
    Deltas,
    Started,
    Stats,
    Submit,
    WorkerConfig,
    frame,
    read_frame,
    to_worker,
)
from batching.scheduler import Scheduler
from engines import registry
from engines.base import EngineError, StepEngine
from engines.types import OutputDelta

STATS_INTERVAL = 0.1  # seconds
MAX_UNSENT_BYTES = 64 * 2**20  # to a gateway that has stopped reading
EXIT_CANNOT_START = 2

log = logging.getLogger("penstock.worker")


class Worker:
    """Serves any number of gateways: a request's deltas go to the connection that it came by."""

    def __init__(self, engine: StepEngine, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._batcher = Batcher(engine, scheduler, self._deliver)
        self._owners: dict[str, asyncio.StreamWriter] = {}
        self._gateways: set[asyncio.StreamWriter] = set()

    async def serve(self, socket_path: str, started: Started) -> None:
        """Returns when standard input ends; raises what the engine or the batcher raised."""
        await asyncio.start_unix_server(self._serve_gateway, socket_path)
        os.chmod(socket_path, 0o600)
        announce(started)
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(self._batcher.run()), tasks.create_task(self._report())]
            await _end_of_input()
            for task in running:
                task.cancel()

    async def _serve_gateway(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._gateways.add(writer)
        self._send(writer, frame(Stats(self._scheduler.snapshot())))
        try:
            while True:
                message = to_worker.decode(await read_frame(reader))
                if isinstance(message, Submit):
                    self._owners[message.request.request_id] = writer
                    self._batcher.add(message.request)
                else:
                    self._batcher.abort(message.request_id)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the gateway is gone: that is how it says goodbye
        finally:
            self._forget_gateway(writer)

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
            by_owner[owner].append(delta)
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
            data = frame(Stats(self._scheduler.snapshot()))
            if data != last:
                for gateway in self._gateways:
                    self._send(gateway, data)
            last = data
            await asyncio.sleep(STATS_INTERVAL)


async def _end_of_input() -> None:
    """Returns when the process at the other end of standard input has closed it or died."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.read(4096):
        pass


def announce(started: Started) -> None:
    """Our one line; whatever a library prints later joins the log instead of filling a pipe that nobody reads."""
    os.write(sys.stdout.fileno(), msgspec.json.encode(started) + b"\n")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    # Signals to the whole process group are the gateway's to handle: it drains first, then closes our input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # The engine's thread is mostly in Python between its operators; the socket's thread must not wait 5 ms for it.
    sys.setswitchinterval(0.0005)
    config = msgspec.json.decode(sys.stdin.readline(), type=WorkerConfig)
    try:
        engine = registry.create(config.engine)
    except EngineError as error:
        announce(Started(error=str(error)))
        sys.exit(EXIT_CANNOT_START)
    scheduler = Scheduler(engine.info, config.scheduler)
    info = replace(engine.info, max_model_len=scheduler.max_model_len)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(config.socket_path)
    asyncio.run(Worker(engine, scheduler).serve(config.socket_path, Started(info)))


if __name__ == "__main__":
    main()
