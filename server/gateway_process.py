"""One of several gateway processes. Started by `server.gateways`."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import uvloop

from batching.child import announce, outlive_parent, take_stdout
from batching.link import WorkerConnection
from batching.protocol import Started, WorkerConfig
from server import logs, settings_json
from server.control_socket import ControlClient
from server.gateway import answer, signals_give_up_the_start
from server.gateways import GatewayConfig
from server.launch import OPERATOR_ERRORS
from server.metrics import Metrics, share_counts
from server.registry import Registry
from server.services import opened_store, running
from server.settings import Settings


def main() -> None:
    stdout = take_stdout()
    config = msgspec.json.decode(sys.stdin.readline(), type=GatewayConfig)
    settings = settings_json.load(config.settings)
    logs.configure(settings.server.log_level, gateway=config.number)
    threading.Thread(target=stop_with_parent, daemon=True).start()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(config, settings, lambda: announce(stdout, Started())))
    except OPERATOR_ERRORS as error:
        announce(stdout, Started(error=str(error)))
        sys.exit(2)


def stop_with_parent() -> None:
    """The end of our input is a signal like any other: our parent wants us to drain, or has died, and the workers with
    it; then every answer ends in its error, and is settled."""
    outlive_parent()
    os.kill(os.getpid(), signal.SIGTERM)


async def serve(config: GatewayConfig, settings: Settings, on_ready: Callable[[], None]) -> None:
    folder = Path(config.folder)
    share_counts(folder / "metrics", config.number)
    metrics = Metrics(folder / "metrics")

    def connection(worker: WorkerConfig, name: str) -> WorkerConnection:
        return WorkerConnection(worker.socket_path, name, config.engines[name], worker.silence)

    registry = Registry(settings, folder, connection)
    with socket.socket(fileno=config.listener) as listener, signals_give_up_the_start():
        control = ControlClient(registry, folder)
        async with opened_store(settings) as store, running(settings, store, registry, metrics, control) as services:
            await answer(services, listener, on_ready)


if __name__ == "__main__":
    main()
