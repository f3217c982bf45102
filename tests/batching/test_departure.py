"""A worker on its way out: what it refuses, what it lets finish, what it cuts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from batching.client import WorkerClient
from batching.departure import Departure
from batching.protocol import Action, Control, Controlled
from engines.base import EngineError
from engines.fake_tokens import fake_answer
from engines.types import ErrorCode, FinishReason
from tests.batching.test_worker import ENDLESS, Serving, ask, read_to_end, serving
from tests.fakes import eventually


@pytest.fixture
async def served(socket_path: str) -> AsyncIterator[Serving]:
    async with serving(socket_path, delay_ms=1) as served:
        yield served


@pytest.fixture
async def client(served: Serving) -> AsyncIterator[WorkerClient]:
    client = await served.connect()
    yield client
    await client.close()


async def test_what_runs_is_finished_and_what_comes_is_refused(served: Serving, client: WorkerClient) -> None:
    other = await served.connect()
    receivers = [client.submit(ask(f"r{i}", [i + 1], 100)) for i in range(20)]  # some of them still wait
    await receivers[0].get()
    draining = asyncio.create_task(client.control(Action.DRAIN, "It is unloaded."))
    await eventually(lambda: served.worker._departure.refusal is not None)
    refused = await read_to_end(other.submit(ask("late", [1], 5)))
    assert refused.error is not None
    assert (refused.error.code, refused.error.message) == (ErrorCode.UNLOADED, "It is unloaded.")
    assert not refused.token_ids
    assert not draining.done()
    answers = [await read_to_end(receiver) for receiver in receivers[1:]]
    assert [a.token_ids for a in answers] == [fake_answer([i + 1], 100) for i in range(1, 20)]
    await asyncio.wait_for(draining, 30)
    await other.close()


async def test_what_another_engine_had_begun_is_finished_too_until_it_is_cut(
    served: Serving, client: WorkerClient
) -> None:
    running = client.submit(ask("running", [1], ENDLESS))
    await running.get()
    draining = asyncio.create_task(client.control(Action.DRAIN, "It is unloaded."))
    await eventually(lambda: served.worker._departure.refusal is not None)
    begun = fake_answer([1], 9)
    for num_begun in (4, 0):
        moved = replace(ask(f"moved-{num_begun}", [1], 9), is_moved=True, output_token_ids=begun[:num_begun])
        answer = await read_to_end(client.submit(moved))
        assert (answer.token_ids, answer.error) == (begun[num_begun:], None)
    await client.control(Action.CUT, "It was cut.")
    await asyncio.wait_for(draining, 30)
    for is_moved, message in ((True, "It was cut."), (False, "It is unloaded.")):
        late = replace(ask(f"late-{is_moved}", [1], 9), is_moved=is_moved)
        refused = await read_to_end(client.submit(late))
        assert refused.error is not None
        assert (refused.error.code, refused.error.message) == (ErrorCode.UNLOADED, message)


async def test_what_is_cut_ends_in_an_error_with_its_account(served: Serving, client: WorkerClient) -> None:
    receivers = [client.submit(ask(f"r{i}", [1, 2, 3], ENDLESS)) for i in range(3)]
    await asyncio.gather(*(receiver.get() for receiver in receivers))
    draining = asyncio.create_task(client.control(Action.DRAIN, "It is unloaded."))
    await client.control(Action.CUT, "It was cut.")
    await asyncio.wait_for(draining, 30)
    for receiver in receivers:
        last = receiver.take()
        assert last is not None
        assert last.finish_reason is FinishReason.ERROR
        assert last.error is not None
        assert (last.error.code, last.error.message) == (ErrorCode.UNLOADED, "It was cut.")
        assert last.computed_tokens == 3
    assert not served.worker._owners
    served.scheduler.check_integrity()


async def test_it_can_be_taken_back(served: Serving, client: WorkerClient) -> None:
    await client.control(Action.DRAIN, "It is unloaded.")
    await client.control(Action.CUT, "It was cut.")
    await client.control(Action.RESUME)
    assert (await read_to_end(client.submit(ask("r", [1], 5)))).token_ids == fake_answer([1], 5)
    stopped = client.submit(ask("s", [1], ENDLESS))
    await stopped.get()
    client.abort("s")
    assert (await read_to_end(stopped)).finish_reason is FinishReason.ABORT


async def test_an_engine_of_ours_has_nothing_to_ask_anybody(client: WorkerClient) -> None:
    await client.control(Action.CHECK)
    await client.control(Action.UNLOAD)


async def test_a_worker_that_ends_meanwhile(served: Serving, client: WorkerClient) -> None:
    receiver = client.submit(ask("r", [1], ENDLESS))
    await receiver.get()
    draining = asyncio.create_task(client.control(Action.DRAIN, "It is unloaded."))
    await asyncio.sleep(0.01)
    await client.close()
    with pytest.raises(ConnectionError):
        await draining
    with pytest.raises(ConnectionError):
        await client.control(Action.CHECK)


class Remote:
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.error: Exception | None = None

    async def check_unload(self) -> None:
        self.calls.append("check")
        if self.error:
            raise self.error

    async def unload(self) -> None:
        self.calls.append("unload")
        if self.error:
            raise self.error

    def resume(self) -> None:
        self.calls.append("resume")


async def test_what_runs_the_model_elsewhere_is_asked() -> None:
    remote = Remote()
    departure = Departure([], lambda: True, lambda _: None, remote)
    for number, action in enumerate(Action):
        assert await departure.carry_out(Control(number, action)) == Controlled(number)
    assert remote.calls == ["check", "unload", "resume"]
    remote.error = EngineError("it does not want to")
    assert (await departure.carry_out(Control(7, Action.UNLOAD))).error == "it does not want to"
    remote.error = RuntimeError("a secret")
    answer = await departure.carry_out(Control(8, Action.CHECK))
    assert "check" in answer.error
    assert "secret" not in answer.error


async def test_nothing_is_over_before_it_is_sent() -> None:
    sent: list[bool] = []
    departure = Departure([], lambda: bool(sent), lambda _: None, None)
    draining = asyncio.create_task(departure.carry_out(Control(1, Action.DRAIN)))
    await asyncio.sleep(0.1)
    assert not draining.done()
    sent.append(True)
    assert await asyncio.wait_for(draining, 30) == Controlled(1)
