"""Addresses, and what happens when somebody else has them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from server.gateway import MAX_UNSENT_BYTES, AddressError, Gateway, base_url, bind, signals_give_up_the_start
from server.http_protocol import BoundedHTTPProtocol, Bounds
from server.settings_sections import ServerSettings
from tests.certificate import WHY_NOT, can_be_made, make_certificate


def settings(**changes: Any) -> ServerSettings:
    return ServerSettings(**{"port": 0, "data_dir": Path("unused"), **changes})


@pytest.mark.parametrize(
    ("host", "shown"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::1", "[::1]"), ("::", "[::1]")],  # noqa: S104
)
def test_where_clients_find_it(host: str, shown: str) -> None:
    server = settings(host=host)
    try:
        listener = bind(server, 30)
    except AddressError:
        pytest.skip("this machine has no IPv6")
    with listener:
        port = listener.getsockname()[1]
        assert base_url(server, listener) == f"http://{shown}:{port}/v1"
        secure = settings(host=host, tls_cert="cert.pem", tls_key="key.pem")
        assert base_url(secure, listener) == f"https://{shown}:{port}/v1"


def test_a_port_in_use_is_one_line() -> None:
    with bind(settings(), 30) as taken:
        taken.listen()
        with pytest.raises(AddressError, match=r"^127\.0\.0\.1:\d+: can't be listened on: Address already in use$"):
            bind(settings(port=taken.getsockname()[1]), 30)


@pytest.mark.parametrize("host", ["203.0.113.1", "no-such-host.invalid"])
def test_an_address_of_another_machine_is_one_line(host: str) -> None:
    with pytest.raises(AddressError, match="can't be listened on"):
        bind(settings(host=host), 30)


async def test_two_that_start_at_once() -> None:
    """Both bind, for neither listens while it loads its models; the second to listen is told."""
    with bind(settings(), 30) as first, bind(settings(port=first.getsockname()[1]), 30) as second:
        first.listen()
        config = uvicorn.Config(lambda: None, lifespan="off", log_config=None)
        gateway = Gateway(config, services=None, on_ready=lambda: pytest.fail("it can't be ready"))  # type: ignore[arg-type]
        with pytest.raises(AddressError, match="Address already in use"):
            await gateway.serve([second])


@pytest.mark.skipif(not can_be_made(), reason=WHY_NOT)
async def test_a_tls_handshake_that_does_not_come_is_closed(tmp_path: Path) -> None:
    """Of a client that connects and says nothing: uvicorn waits for a minute."""
    cert, key = make_certificate(tmp_path)
    http = BoundedHTTPProtocol.within(Bounds(header=0.3))
    config = uvicorn.Config(
        lambda: None, http=http, lifespan="off", ssl_certfile=cert, ssl_keyfile=key, log_config=None
    )
    config.load()
    gateway = Gateway(config, services=None, on_ready=lambda: None)  # type: ignore[arg-type]
    with bind(settings(), 30) as listener:
        await gateway.startup([listener])
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.getsockname()[1])
        async with asyncio.timeout(20):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()
        gateway.servers[0].close()


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux has these options, this system does not")
def test_a_connection_inherits_what_bounds_it() -> None:
    with bind(settings(), 7) as listener:
        listener.listen()
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7000
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == MAX_UNSENT_BYTES


def test_a_free_port_can_be_taken_again_at_once() -> None:
    with bind(settings(), 30) as listener:
        port = listener.getsockname()[1]
        listener.listen()
        with socket.create_connection(("127.0.0.1", port)):
            listener.accept()[0].close()  # it is ours to wait in TIME_WAIT
    bind(settings(port=port), 30).close()


async def test_a_signal_gives_up_a_start() -> None:
    reached = False
    with signals_give_up_the_start():
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(60)
        reached = True
    assert not reached
    await asyncio.sleep(0)  # and nothing of the cancellation is left


async def test_another_cancellation_goes_on() -> None:
    async def start() -> None:
        with signals_give_up_the_start():
            await asyncio.sleep(60)

    task = asyncio.create_task(start())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
