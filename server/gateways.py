"""Several gateway processes behind one listening socket: our children, watched like the workers."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from batching.child import Supervisor, start_all
from engines.types import EngineInfo
from server import settings_json
from server.control_socket import ControlServer
from server.gateway import stop_signals
from server.registry import Registry
from server.services import LAST_WORDS
from server.settings import Settings

CLEAN_UP = 20.0  # seconds after the drain for connections, usage and the store


class GatewayError(Exception):
    """A gateway process can't start. The message is one line."""


@dataclass(slots=True, frozen=True)
class GatewayConfig:
    """What a gateway process is started with."""

    number: int
    settings: str  # by `settings_json`
    listener: int  # an inherited descriptor
    folder: str  # of the workers' sockets and of the gateways' counts
    engines: dict[str, EngineInfo]  # by the replica's name


class GatewaySupervisor(Supervisor):
    """One gateway process. In a session of its own, so that a Ctrl-C reaches it through us alone."""

    module = "server.gateway_process"
    what = "process"
    failure = GatewayError
    own_session = True

    def __init__(
        self, number: int, settings: Settings, listener: socket.socket, registry: Registry, folder: Path
    ) -> None:
        stop_timeout = settings.timeouts.drain + LAST_WORDS + CLEAN_UP
        super().__init__(f"gateway {number}", stop_timeout, inherited=(listener.fileno(),))
        self._number = number
        self._settings = settings
        self._listener = listener
        self._folder = folder
        self._registry = registry

    def hurry(self) -> None:
        """End without waiting for what runs, once it has been told to stop."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)

    def _configuration(self) -> GatewayConfig:
        return GatewayConfig(
            number=self._number,
            settings=settings_json.dump(self._settings),
            listener=self._listener.fileno(),
            folder=str(self._folder),
            engines=self._registry.engines,
        )

    async def _gone(self) -> None:
        assert self._process is not None
        await self._process.wait()


async def serve(
    settings: Settings,
    listener: socket.socket,
    registry: Registry,
    folder: Path,
    on_ready: Callable[[], None],
) -> None:
    """Workers here, gateways around them, until a signal ends them.

    Raises GatewayError, EngineError, ModelFilesError or TokenizerError: one line for the operator.
    """
    await registry.start()
    control = ControlServer(registry, folder, settings.timeouts.drain)
    try:
        await control.start()
        gateways = [
            GatewaySupervisor(number, settings, listener, registry, folder)
            for number in range(settings.server.gateways)
        ]
        await start_all(gateways)
        await _until_stopped(gateways, listener, on_ready)
    finally:
        await control.stop()
        await registry.stop()


async def _until_stopped(
    gateways: Sequence[GatewaySupervisor], listener: socket.socket, on_ready: Callable[[], None]
) -> None:
    stopping = asyncio.Event()

    def on_signal() -> None:
        if stopping.is_set():
            for gateway in gateways:
                gateway.hurry()
        stopping.set()

    with stop_signals(on_signal):
        try:
            on_ready()
            await stopping.wait()
        finally:
            listener.close()  # theirs stay open while they drain; ours would take connections that nobody serves
            await asyncio.gather(*(gateway.stop() for gateway in gateways))
