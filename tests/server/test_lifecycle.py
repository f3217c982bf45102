"""Loads and unloads of one model that meet, fail, or are given up. Its workers are on paper."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, cast

import pytest

from batching.protocol import Action
from engines.base import EngineError
from engines.types import Continuation, EngineInfo
from server import lifecycle
from server.balancing import Replica
from server.errors import Overloaded
from server.lifecycle import Lifecycle, ModelControlError
from server.model_state import Phase, Standing
from server.registry import Deployment
from tests.fakes import eventually, make_info


class Client:
    """A worker, as its owner sees it. `blocked` actions never end; those in `errors` fail."""

    def __init__(self) -> None:
        self.told: list[Action] = []
        self.blocked: set[Action] = set()
        self.dies = asyncio.Event()
        self.errors: dict[Action, Exception] = {}
        self.closed = asyncio.Event()
        self.stats = cast(Any, type("Stats", (), {"ready": True, "running": 0, "waiting": 0}))

    async def control(self, action: Action, text: str = "") -> None:
        self.told.append(action)
        if action in self.blocked:
            await self.dies.wait()
            raise ConnectionError
        if action in self.errors:
            raise self.errors[action]


class Link:
    def __init__(self) -> None:
        self.name = "m@1"
        self.info: EngineInfo | None = make_info()
        self.client: Client | None = Client()
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.failure: Exception | None = None
        self.starts = self.stops = 0
        self.may_restart = True

    async def start(self) -> None:
        self.starts += 1
        await self.may_start.wait()
        if self.failure is not None:
            raise self.failure
        self.client = Client()

    async def stop(self) -> None:
        self.stops += 1
        self.client = None

    def let_restart(self, allowed: bool) -> None:
        self.may_restart = allowed

    async def refresh(self) -> None: ...


class House:
    def __init__(self, num_replicas: int = 1, drain: float = 30, engine: str = "fake") -> None:
        self.links = [Link() for _ in range(num_replicas)]
        self.link = self.links[0]
        replicas = [Replica(cast(Any, link)) for link in self.links]
        nothing = cast(Any, None)
        self.deployment = Deployment("m", "1", nothing, nothing, replicas, "fp", engine)
        self.phases: list[Phase] = []
        self.lifecycle = Lifecycle(self.deployment, drain, self._announce)

    async def _announce(self, until_known: bool) -> None:
        assert until_known == (self.deployment.state.phase is Phase.READY)
        self.phases.append(self.deployment.state.phase)

    @property
    def client(self) -> Client:
        assert self.link.client is not None
        return self.link.client

    def load(self) -> asyncio.Task[None]:
        return asyncio.create_task(self.lifecycle.load())

    def unload(self, drain: float | None = None) -> asyncio.Task[None]:
        return asyncio.create_task(self.lifecycle.unload(drain))

    async def comes_to(self, phase: Phase) -> None:
        await eventually(lambda: self.deployment.state.phase is phase)


async def test_there_and_back() -> None:
    house = House(2)
    clients = [link.client for link in house.links]
    await house.unload()
    for client in clients:
        assert client is not None
        assert client.told == [Action.CHECK, Action.DRAIN, Action.UNLOAD]
    assert [link.stops for link in house.links] == [1, 1]
    await house.load()
    assert house.phases == [Phase.UNLOADING, Phase.UNLOADED, Phase.LOADING, Phase.READY]
    assert [link.starts for link in house.links] == [1, 1]


async def test_what_is_so_already_is_left_alone() -> None:
    house = House()
    await house.load()
    assert not house.phases
    await house.unload()
    await house.unload()
    assert (house.link.stops, len(house.phases)) == (1, 2)


async def test_what_requests_get() -> None:
    house = House()
    house.deployment.check_served()
    for phase in (Phase.LOADING, Phase.UNLOADING, Phase.UNLOADED, Phase.FAILED):
        house.deployment.state.phase = phase
        with pytest.raises(Overloaded, match="m@1") as caught:
            house.deployment.check_served()
        assert caught.value.code == ("engine_starting" if phase is Phase.LOADING else "model_unloaded")
    house.deployment.state.phase = Phase.READY
    assert house.deployment.standing is Standing.READY
    house.link.client = None
    assert house.deployment.standing is Standing.AWAY


async def test_the_drain_is_bounded() -> None:
    house = House()
    client = house.client
    client.blocked.add(Action.DRAIN)
    await asyncio.wait_for(house.unload(0.01), 30)
    assert client.told == [Action.CHECK, Action.DRAIN, Action.CUT, Action.UNLOAD]


async def test_a_second_unload_may_shorten_the_drain_and_not_lengthen_it() -> None:
    house = House()
    client = house.client
    client.blocked.add(Action.DRAIN)
    first = house.unload(3600)
    await eventually(lambda: Action.DRAIN in client.told)
    longer = house.unload(7200)
    await asyncio.sleep(0.05)
    assert not first.done()
    await asyncio.wait_for(house.unload(0), 30)
    await asyncio.wait_for(asyncio.gather(first, longer), 30)
    assert (client.told.count(Action.CUT), house.link.stops) == (1, 1)


async def test_a_second_unload_during_the_cut_waits_for_its_end() -> None:
    house = House()
    client = house.client
    client.blocked |= {Action.DRAIN, Action.CUT}
    first = house.unload(0.01)
    await eventually(lambda: Action.CUT in client.told)
    second = house.unload(0)
    await asyncio.sleep(0)
    client.dies.set()
    await asyncio.wait_for(asyncio.gather(first, second), 30)
    assert house.link.stops == 1


async def test_what_one_that_dies_was_at_is_waited_for_at_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which had nothing left, and said so, before it died."""
    monkeypatch.setattr(lifecycle, "MOVE_TIME", 0.01)
    house = House(2)
    dying, other = (cast(Client, link.client) for link in house.links)
    dying.blocked.add(Action.DRAIN)
    unloading = house.unload()
    await eventually(lambda: Action.DRAIN in other.told)
    assert not any(link.may_restart for link in house.links)
    other.blocked.add(Action.DRAIN)
    dying.dies.set()
    await eventually(lambda: other.told.count(Action.DRAIN) == 2)
    await asyncio.sleep(0.05)
    assert not unloading.done()
    other.dies.set()
    await asyncio.wait_for(unloading, 30)


async def test_a_load_during_an_unload_comes_after_it() -> None:
    house = House()
    house.client.blocked.add(Action.DRAIN)
    unloading = house.unload(0.1)
    await house.comes_to(Phase.UNLOADING)
    await asyncio.wait_for(house.load(), 30)
    assert unloading.done()
    assert house.phases == [Phase.UNLOADING, Phase.UNLOADED, Phase.LOADING, Phase.READY]


async def test_an_unload_gives_up_the_load_under_way_and_those_that_wait() -> None:
    house = House()
    await house.unload()
    house.link.may_start.clear()
    loading, waiting = house.load(), house.load()
    await house.comes_to(Phase.LOADING)
    await asyncio.wait_for(house.unload(), 30)
    for load in (loading, waiting):
        with pytest.raises(ModelControlError) as caught:
            await load
        assert caught.value.code == "superseded"
    assert house.deployment.state.phase is Phase.UNLOADED
    house.link.may_start.set()
    await house.load()
    assert house.deployment.state.phase is Phase.READY


async def test_a_load_that_fails_says_so_and_can_be_tried_again() -> None:
    house = House(2)
    await house.unload()
    house.link.failure = EngineError("path: its files are gone")
    with pytest.raises(ModelControlError, match=r"m@1 could not be loaded: path: its files are gone") as caught:
        await house.load()
    assert caught.value.code == "load_failed"
    assert (house.deployment.standing, house.deployment.state.reason) == (Standing.FAILED, "path: its files are gone")
    assert all(link.stops == 2 for link in house.links), "all or none"
    house.link.failure = None
    await house.load()
    assert (house.deployment.standing, house.deployment.state.reason) == (Standing.READY, "")


async def test_a_failed_load_is_cleared_by_an_unload() -> None:
    house = House()
    await house.unload()
    house.link.failure = RuntimeError("a secret")
    with pytest.raises(ModelControlError, match="RuntimeError; see the log"):
        await house.load()
    await house.unload()
    assert (house.deployment.standing, house.deployment.state.reason) == (Standing.UNLOADED, "")


@pytest.mark.parametrize("change", [{"vocab_size": 1}, {"continuation": Continuation.GREEDY}, {"takes_grammars": True}])
async def test_another_model_than_before_is_not_served(change: dict[str, Any]) -> None:
    """Gateways keep the tokenizer and the limits of the start, however often it is tried."""
    house = House()
    await house.unload()
    assert house.link.info is not None
    house.link.info = replace(house.link.info, num_blocks=7)
    await house.load()
    await house.unload()
    start, old = house.link.start, house.link.info

    async def started() -> None:
        await start()
        house.link.info = replace(old, **change)

    house.link.start = started  # type: ignore[method-assign]
    for _ in range(2):
        with pytest.raises(ModelControlError, match="another one than at the start"):
            await house.load()
        assert house.deployment.standing is Standing.FAILED
    assert house.link.client is None


@pytest.mark.parametrize("action", [Action.CHECK, Action.UNLOAD])
async def test_an_unload_that_is_refused_leaves_things_as_they_were(action: Action) -> None:
    house = House(2, engine="triton")
    house.client.errors[action] = EngineError("its Triton does not want to")
    with pytest.raises(ModelControlError, match=r"m@1 could not be unloaded: its Triton does not want to") as caught:
        await house.unload()
    assert caught.value.code == "unload_failed"
    assert house.deployment.standing is Standing.READY
    assert not any(link.stops for link in house.links)
    for link in house.links:
        assert link.client is not None
        assert link.client.told[-1] is Action.RESUME
        assert link.may_restart
    assert (Phase.UNLOADING in house.phases) == (action is Action.UNLOAD)


async def test_a_worker_that_does_not_come_back_leaves_the_model_ready() -> None:
    house = House(2)
    house.client.errors = {
        Action.UNLOAD: EngineError("its Triton does not want to"),
        Action.RESUME: EngineError("nor now"),
    }
    with pytest.raises(ModelControlError, match="could not be unloaded: its Triton does not want to"):
        await house.unload()
    assert house.deployment.standing is Standing.READY


@pytest.mark.parametrize("state", ["absent", "hangs", "dies"])
async def test_a_worker_that_does_not_answer_is_ended_all_the_same(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "CHECK_TIMEOUT", 0.01)
    house = House(engine="triton")
    if state == "absent":
        house.link.client = None
    elif state == "hangs":
        house.client.blocked = set(Action)
    else:
        house.client.errors = {action: ConnectionError() for action in Action}
    await asyncio.wait_for(house.unload(), 30)
    assert house.link.stops == 1
    assert house.deployment.standing is Standing.UNLOADED
    assert "on Triton it is as it was" in house.deployment.state.reason
