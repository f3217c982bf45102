"""The gateway processes as their parent sees them: started, told to stop, and hurried."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import msgspec
import pytest

from batching.child import start_all
from batching.supervisor import WorkerSupervisor
from server import settings_json
from server.gateway import bind
from server.gateways import GatewayConfig, GatewayError, GatewaySupervisor, _until_stopped
from server.registry import Registry
from server.settings import Settings, load
from tests.fakes import eventually, make_info

FAKE = '[[models]]\nname = "m"\nengine = "fake"\n'


def settings(folder: Path, **server: object) -> Settings:
    (folder / "p.toml").write_text(FAKE + '[server]\nredis_url = "redis://127.0.0.1:1"\n')
    return load(folder / "p.toml", {"data_dir": folder / "data", "port": 0, **server}, {})


class Gateway(GatewaySupervisor):
    """One whose stop waits until it is hurried."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.hurried = asyncio.Event()

    async def stop(self) -> None:
        self.events.append("stop")
        await self.hurried.wait()

    def hurry(self) -> None:
        self.events.append("hurry")
        self.hurried.set()


async def test_the_first_signal_stops_all_and_the_second_hurries_them() -> None:
    gateways, ready = [Gateway(), Gateway()], asyncio.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = asyncio.create_task(_until_stopped(gateways, listener, ready.set))
        await ready.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        await eventually(lambda: [gateway.events for gateway in gateways] == [["stop"]] * 2)
        assert listener.fileno() == -1, "nobody would serve what comes now"
        assert not running.done()
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.wait_for(running, 30)
    assert [gateway.events for gateway in gateways] == [["stop", "hurry"]] * 2


async def test_a_banner_that_can_t_be_printed_stops_all() -> None:
    gateway = Gateway()
    gateway.hurried.set()

    def ready() -> None:
        raise BrokenPipeError

    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(BrokenPipeError):
        await _until_stopped([gateway], listener, ready)
    assert gateway.events == ["stop"]


async def test_a_gateway_that_can_t_start_says_why(tmp_path: Path) -> None:
    """Its settings and the listener reach it, its one line reaches us: here it can't write its database."""
    here = settings(tmp_path, database_url="sqlite+aiosqlite:////proc/none/penstock.db")
    with bind(here.server, 30) as listener:
        registry = Registry(here, tmp_path, WorkerSupervisor)
        gateways = [GatewaySupervisor(number, here, listener, registry, tmp_path) for number in range(2)]
        with pytest.raises(GatewayError, match=r"^data_dir: can't write ") as caught:
            await start_all(gateways)
        assert "\n" not in str(caught.value)
        assert [gateway.pid for gateway in gateways] == [None, None]


async def test_what_a_gateway_is_started_with(tmp_path: Path) -> None:
    here = settings(tmp_path, gateways=2)
    with bind(here.server, 30) as listener:
        registry = Registry(here, tmp_path, WorkerSupervisor)
        gateway = GatewaySupervisor(1, here, listener, registry, tmp_path)
        config = GatewayConfig(1, "", listener.fileno(), str(tmp_path), {"m@1": make_info()})
        assert msgspec.json.decode(msgspec.json.encode(config), type=GatewayConfig) == config
        told = gateway._configuration()
        assert (told.number, told.listener, told.folder) == (1, listener.fileno(), str(tmp_path))
        assert settings_json.load(told.settings) == here
        gateway.hurry()  # it isn't there
