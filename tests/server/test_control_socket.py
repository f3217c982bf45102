"""Model control between the process that owns the workers and its gateways, over their socket."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import uvloop

from batching.protocol import Action
from engines.base import EngineError
from server import control_socket
from server.control_socket import ControlClient, ControlServer
from server.lifecycle import ModelControlError
from server.model_state import Phase
from server.registry import Deployment, Registry
from tests.fakes import eventually
from tests.server.test_lifecycle import House


def registry(house: House) -> Registry:
    return cast(Registry, SimpleNamespace(deployments={"m@1": house.deployment}))


class Cluster:
    """An owner, and gateways that see the same deployment, each with a link of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.owner = House()
        self.server = ControlServer(registry(self.owner), folder, drain=30)
        self.clients: list[ControlClient] = []

    async def gateway(self) -> tuple[ControlClient, Deployment]:
        house = House()
        client = ControlClient(registry(house), self.folder)
        await client.start()
        self.clients.append(client)
        return client, house.deployment


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path)
    await made.server.start()
    yield made
    for client in made.clients:
        await client.stop()
    await made.server.stop()


def test_it_listens_until_it_is_stopped(tmp_path: Path) -> None:
    """On the loop that serves, which ends a server that nobody holds."""

    async def connect_after_a_collection() -> None:
        cluster = Cluster(tmp_path)
        await cluster.server.start()
        gc.collect()
        client, _ = await cluster.gateway()
        await client.stop()
        await cluster.server.stop()
        with pytest.raises(OSError):  # noqa: PT011 - refused, or nothing there
            await cluster.gateway()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(connect_after_a_collection())


async def test_whoever_is_asked_it_holds_for_all(cluster: Cluster) -> None:
    (first, here), (second, there) = await cluster.gateway(), await cluster.gateway()
    await first.unload("m@1", 5)
    await eventually(lambda: {here.state.phase, there.state.phase} == {Phase.UNLOADED})
    assert cluster.owner.link.stops == 1
    _, late = await cluster.gateway()
    assert late.state.phase is Phase.UNLOADED
    await second.load("m@1")
    assert {d.state.phase for d in (here, there, late)} == {Phase.READY}, "before it is answered"


async def test_what_goes_wrong_reaches_who_asked(cluster: Cluster) -> None:
    client, deployment = await cluster.gateway()
    cluster.owner.client.errors[Action.CHECK] = EngineError("it does not want to")
    with pytest.raises(ModelControlError, match="it does not want to") as caught:
        await client.unload("m@1", None)
    assert caught.value.code == "unload_failed"
    assert deployment.state.phase is Phase.READY
    with pytest.raises(ModelControlError, match="see the log"):
        await client.load("nobody@1")


async def test_a_gateway_that_leaves_stops_nothing(cluster: Cluster) -> None:
    client, _ = await cluster.gateway()
    cluster.owner.client.blocked.add(Action.DRAIN)
    asking = asyncio.create_task(client.unload("m@1", 0.2))
    await cluster.owner.comes_to(Phase.UNLOADING)
    asking.cancel()
    await client.stop()
    await cluster.owner.comes_to(Phase.UNLOADED)


async def test_a_gateway_that_does_not_move_holds_nobody_up_for_long(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_socket, "SEEN_TIMEOUT", 0.05)
    client, _ = await cluster.gateway()
    _, stuck = await cluster.gateway()
    await client.unload("m@1", 0)
    await eventually(lambda: stuck.state.phase is Phase.UNLOADED)

    async def never() -> None:
        await asyncio.Event().wait()

    stuck.replicas[0].link.refresh = never  # type: ignore[method-assign]
    await asyncio.wait_for(client.load("m@1"), 30)
    assert stuck.state.phase is not Phase.READY


async def test_an_owner_that_is_gone(cluster: Cluster) -> None:
    client, _ = await cluster.gateway()
    cluster.owner.client.blocked.add(Action.DRAIN)
    asking = asyncio.create_task(client.unload("m@1", 3600))
    await cluster.owner.comes_to(Phase.UNLOADING)
    for gateway in list(cluster.server._gateways):
        gateway.writer.transport.abort()
    for call in (asking, client.load("m@1")):
        with pytest.raises(ModelControlError) as caught:
            await asyncio.wait_for(call, 30)
        assert caught.value.code == "shutting_down"
