"""One gateway's HTTP server: the address it listens on, what signals do to it, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from typing import cast

import uvicorn
from starlette.types import ASGIApp

from server.app import create_app
from server.http_protocol import BoundedHTTPProtocol, Bounds
from server.open_files import room_for
from server.services import Services
from server.settings import Settings
from server.settings_layers import SettingsError
from server.settings_sections import ServerSettings
from server.websocket_protocol import BoundedWebSocketProtocol

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
OBSERVE_EVERY = 0.5  # seconds between what metrics tell of the moment; uvicorn asks once a second
SETTLE_TIMEOUT = 3.0  # seconds
FLUSH_TIMEOUT = 1.0  # seconds in which the last bytes of answers reach their clients, however late it is
PING_INTERVAL = 20.0  # seconds, on WebSockets
MAX_UNSENT_BYTES = 256 * 1024  # of a connection, in the kernel: its own bound is megabytes
# Whose machine has vanished while it waits for an answer does not say so: it is asked after 15 s of silence, then every
# 5 s, three times.
KEEP_ALIVE_OPTIONS = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


class AddressError(Exception):
    """The configured address can't be listened on. The message is one line."""


class Gateway(uvicorn.Server):
    """On SIGTERM or SIGINT it drains first: uvicorn alone would close WebSockets in mid-answer. Twice: at once."""

    def __init__(self, config: uvicorn.Config, services: Services, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        config.callback_notify, config.timeout_notify = self._observe, OBSERVE_EVERY  # type: ignore[assignment]
        self._services = services
        self._on_ready = on_ready
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """In place of uvicorn's, which gives a TLS handshake a minute."""
        self.servers = []
        try:
            for listener in sockets or ():
                self.servers.append(await self._listen(listener))
        except OSError as error:  # taken by another one that was starting too
            raise AddressError(f"the address can't be listened on: {error.strerror}") from None
        self.started = True
        spare_the_collector()
        self._on_ready()

    async def _observe(self) -> None:
        self._services.observe(len(self.server_state.connections))

    async def _listen(self, listener: socket.socket) -> asyncio.Server:
        config = self.config
        protocol = cast(Callable[..., asyncio.Protocol], config.http_protocol_class)
        bounds: Bounds = getattr(protocol, "bounds", Bounds())
        return await asyncio.get_running_loop().create_server(
            functools.partial(protocol, config, self.server_state, {}),
            sock=listener,
            ssl=config.ssl,
            backlog=config.backlog,
            ssl_handshake_timeout=bounds.header if config.ssl else None,
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn would raise the signal again at the end, and the process would not exit with 0."""
        with stop_signals(self._on_signal):
            yield

    async def cancel_the_rest(self) -> None:
        """Requests whose clients read nothing, or that a second signal cut short, are settled before we go."""
        tasks = list(self.server_state.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=SETTLE_TIMEOUT)

    def _on_signal(self) -> None:
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        else:
            self.should_exit = self.force_exit = True

    async def _drain(self) -> None:
        """Answers whose last bytes are on their way have what is left of the time for it."""
        ends = time.monotonic() + self._services.settings.timeouts.drain
        try:
            await self._services.drain()
        finally:
            left = max(ends - time.monotonic(), FLUSH_TIMEOUT)
            self.config.timeout_graceful_shutdown = left  # type: ignore[assignment] # it need not be whole
            self.should_exit = True


async def answer(services: Services, listener: socket.socket, on_ready: Callable[[], None]) -> None:
    """Until a signal ends it. Raises AddressError."""
    config = uvicorn_config(services.settings, services)
    gateway = Gateway(config, services, on_ready)
    async with services.batches.running(cast(ASGIApp, config.app)):
        await gateway.serve([listener])
        await gateway.cancel_the_rest()


def spare_the_collector() -> None:
    """What is there before the first request stays: a collector that looked at all of it would hold everybody up for
    tens of milliseconds, again and again."""
    gc.collect()
    gc.freeze()


@contextlib.contextmanager
def stop_signals(handler: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def signals_give_up_the_start() -> Iterator[None]:
    """While models load: PID 1 of a container would not even notice a SIGTERM that nobody handles."""
    task = asyncio.current_task()
    assert task is not None
    given_up = False

    def give_up() -> None:
        nonlocal given_up
        given_up = True
        task.cancel()

    with stop_signals(give_up):
        try:
            yield
        except asyncio.CancelledError:
            if not given_up or task.uncancel():
                raise


def uvicorn_config(settings: Settings, services: Services) -> uvicorn.Config:
    timeouts = settings.timeouts
    bounds = Bounds(timeouts.header, timeouts.body, timeouts.write, room_for(settings.limits.connections))
    return uvicorn.Config(
        create_app(services),
        log_config=None,  # ours, in JSON
        access_log=False,
        lifespan="off",
        http=BoundedHTTPProtocol.within(bounds),
        ws=BoundedWebSocketProtocol.within(bounds),
        server_header=False,
        ws_max_size=settings.limits.websocket_message_bytes,
        ws_ping_interval=PING_INTERVAL,
        ws_ping_timeout=PING_INTERVAL,
        ssl_certfile=settings.server.tls_cert or None,
        ssl_keyfile=settings.server.tls_key or None,
    )


def check_certificate(server: ServerSettings) -> None:
    """Before models are loaded. Raises SettingsError."""
    if not server.tls_cert:
        return
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(server.tls_cert, server.tls_key)
    except OSError as error:
        raise SettingsError(f"server.tls_cert: expected a certificate, and its key in tls_key: {error}") from None


def bind(server: ServerSettings, write_timeout: float) -> socket.socket:
    """The address is taken before models are loaded; connections are refused until they are.

    Connections inherit its options. `write_timeout` (seconds): one whose peer takes nothing, or is not there any more,
    ends, with what is still unsent.
    """
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    bounds = {"TCP_USER_TIMEOUT": round(1000 * write_timeout), "TCP_NOTSENT_LOWAT": MAX_UNSENT_BYTES}
    for name, value in (bounds | KEEP_ALIVE_OPTIONS).items():
        if (option := getattr(socket, name, None)) is not None:  # Linux has all of them
            listener.setsockopt(socket.IPPROTO_TCP, option, value)
    try:
        listener.bind((server.host, server.port))
    except OSError as error:
        listener.close()
        raise AddressError(f"{server.host}:{server.port}: can't be listened on: {error.strerror}") from None
    return listener


def base_url(server: ServerSettings, listener: socket.socket) -> str:
    """Where clients on this machine find us."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(server.host, server.host)  # noqa: S104 - read, not bound
    host = f"[{host}]" if ":" in host and not host.startswith("[") else host
    scheme = "https" if server.tls_cert else "http"
    return f"{scheme}://{host}:{listener.getsockname()[1]}/v1"
