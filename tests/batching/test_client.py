"""The gateway's handle, against a worker that says what the test wants."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from batching import client as client_module
from batching.client import Receiver, WorkerClient
from batching.protocol import Abort, Deltas, Stats, Submit, frame, read_message, to_worker
from batching.stats import WorkerStats
from engines.types import ErrorCode, FinishReason, OutputDelta, TokenLogprobs
from tests.fakes import eventually, make_request


class Puppet:
    """A worker's end of the connection."""

    def __init__(self) -> None:
        self.heard: list[Submit | Abort] = []
        self.connected = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        writer.write(frame(Stats(WorkerStats(steps=1))))
        self.connected.set()
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                self.heard.append(await read_message(reader, to_worker))

    def say(self, *deltas: OutputDelta) -> None:
        self.writer.write(frame(Deltas(list(deltas))))


@pytest.fixture
async def puppet(socket_path: str) -> AsyncIterator[Puppet]:
    puppet = Puppet()
    server = await asyncio.start_unix_server(puppet.serve, socket_path)
    yield puppet
    server.close()


@pytest.fixture
async def client(puppet: Puppet, socket_path: str) -> AsyncIterator[WorkerClient]:
    client = await WorkerClient.connect(socket_path)
    await puppet.connected.wait()
    yield client
    await client.close()


def assert_lost(delta: OutputDelta | None) -> None:
    assert delta is not None
    assert delta.finish_reason is FinishReason.ERROR
    assert delta.error is not None
    assert delta.error.code is ErrorCode.ENGINE_FAILED


async def test_a_request_goes_out_and_its_deltas_come_back(client, puppet):
    receiver = client.submit(make_request("r"))
    await eventually(lambda: len(puppet.heard) == 1)
    assert puppet.heard[0].request == make_request("r")
    puppet.say(OutputDelta("r", [1], cached_tokens=5, queue_seconds=0.5), OutputDelta("other", [9]))
    assert await receiver.get() == OutputDelta("r", [1], cached_tokens=5, queue_seconds=0.5)
    puppet.say(OutputDelta("r", [2], FinishReason.STOP))
    assert (await receiver.get()).finish_reason is FinishReason.STOP
    assert not client._receivers


async def test_a_worker_that_says_nothing_hangs(puppet, socket_path):
    client = await WorkerClient.connect(socket_path, silence=0.1)
    receiver = client.submit(make_request("r"))
    assert_lost(await asyncio.wait_for(receiver.get(), 30))
    assert client.closed.is_set()
    assert (client.hangs, client.num_lost) == (True, 1)


async def test_one_that_reports_does_not(puppet, socket_path):
    client = await WorkerClient.connect(socket_path, silence=2.0)
    interval = asyncio.get_running_loop().time() + 3.0
    while asyncio.get_running_loop().time() < interval:
        puppet.writer.write(frame(Stats(WorkerStats(steps=1))))
        await asyncio.sleep(0.1)
    assert not client.closed.is_set()
    await client.close()
    assert not client.hangs


async def test_unread_deltas_are_merged(client, puppet):
    receiver = client.submit(make_request("r"))
    puppet.say(OutputDelta("r", [1], cached_tokens=5, queue_seconds=0.5))
    puppet.say(OutputDelta("r", [2]))
    puppet.say(OutputDelta("r", [3], FinishReason.ABORT, computed_tokens=7))
    await eventually(lambda: not client._receivers)
    assert await receiver.get() == OutputDelta(
        "r", [1, 2, 3], FinishReason.ABORT, cached_tokens=5, queue_seconds=0.5, computed_tokens=7
    )
    assert receiver.take() is None


def test_what_was_computed_is_not_forgotten_with_the_connection():
    receiver = Receiver("r")
    receiver.put(OutputDelta("r", vectors={0: b"1234"}, computed_tokens=50))
    receiver.put(client_module._lost("r"))
    delta = receiver.take()
    assert (delta.vectors, delta.computed_tokens) == ({0: b"1234"}, 50)
    assert_lost(delta)


async def test_an_abort_is_answered_by_the_worker(client, puppet):
    receiver = client.submit(make_request("r"))
    client.abort("r")
    await eventually(lambda: len(puppet.heard) == 2)
    assert puppet.heard[1] == Abort("r")
    puppet.say(OutputDelta("r", finish_reason=FinishReason.ABORT))
    assert (await receiver.get()).finish_reason is FinishReason.ABORT
    client.abort("r")
    client.abort("never heard of")
    client.submit(make_request("last"))
    await eventually(lambda: len(puppet.heard) == 3)
    assert isinstance(puppet.heard[2], Submit), "nothing was said of those that had ended"


async def test_what_is_forgotten_is_not_delivered(client, puppet):
    receiver, other = client.submit(make_request("r")), client.submit(make_request("other"))
    client.forget("r")
    client.forget("r")
    puppet.say(OutputDelta("r", [1]), OutputDelta("other", [2]))
    await other.get()
    assert receiver.take() is None


async def test_several_receivers_may_share_one_signal(client, puppet):
    ready = asyncio.Event()
    receivers = [client.submit(make_request(f"r{i}"), ready) for i in range(3)]
    puppet.say(OutputDelta("r1", [1]))
    await asyncio.wait_for(ready.wait(), 30)
    assert [receiver.take() for receiver in receivers] == [None, OutputDelta("r1", [1]), None]


async def test_a_cancelled_reader_loses_nothing():
    receiver = Receiver("r")
    for cancel_first in (True, False):
        reading = asyncio.create_task(receiver.get())
        await asyncio.sleep(0)
        if cancel_first:
            reading.cancel()
        receiver.put(OutputDelta("r", [1]))
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert await receiver.get() == OutputDelta("r", [1])


async def test_the_death_of_the_worker_ends_every_open_request_once(client, puppet):
    done, read, unread = (client.submit(make_request(name)) for name in ("done", "read", "unread"))
    waiting = asyncio.create_task(read.get())
    puppet.say(OutputDelta("done", [1], FinishReason.STOP), OutputDelta("unread", [7]))
    assert (await done.get()).finish_reason is FinishReason.STOP
    puppet.writer.transport.abort()
    assert_lost(await asyncio.wait_for(waiting, 30))
    assert client.closed.is_set()
    last = unread.take()
    assert last.token_ids == [7], "what came before the end is not lost"
    assert_lost(last)
    assert [receiver.take() for receiver in (done, read, unread)] == [None] * 3


async def test_a_request_after_the_end_is_answered(client, puppet):
    puppet.writer.close()
    await client.closed.wait()
    receiver = client.submit(make_request("late"))
    delta = await receiver.get()
    assert_lost(delta)
    assert delta.error.retry_after_ms > 0
    client.abort("late")
    client.forget("late")


@pytest.mark.parametrize("noise", [b"\0\0\0\1\xc1", b"\xff\xff\xff\xff", b"\0\0\0\3\x92\xa1x"])
async def test_noise_is_the_end_of_the_connection(client, puppet, noise):
    receiver = client.submit(make_request("r"))
    puppet.writer.write(noise)
    assert_lost(await asyncio.wait_for(receiver.get(), 30))
    await client.close()


async def test_statistics_are_the_latest_and_show_nothing_running_after_the_end(client, puppet):
    puppet.writer.write(frame(Stats(WorkerStats(running=3, waiting=2, steps=7))))
    await eventually(lambda: client.stats.steps == 7)
    assert (client.stats.running, client.stats.waiting) == (3, 2)
    puppet.writer.close()
    await client.closed.wait()
    assert (client.stats.running, client.stats.waiting, client.stats.steps) == (0, 0, 7)


async def test_closing_ends_what_is_open(client, puppet):
    receiver = client.submit(make_request("r"))
    await client.close()
    assert_lost(receiver.take())


async def test_the_greeting_is_a_report(client):
    assert client.stats.steps == 1


@pytest.mark.parametrize("greeting", [b"", b"\0\0\0\1\xc1", frame(Deltas([]))])
async def test_connecting_to_what_is_no_worker_fails(socket_path, greeting):
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        writer.close()

    async with await asyncio.start_unix_server(greet, socket_path):
        with pytest.raises(ConnectionError, match="no worker answers"):
            await WorkerClient.connect(socket_path)


async def test_a_worker_that_does_not_serve_yet_is_waited_for(socket_path):
    """It listens while its engine is loaded."""
    async with await asyncio.start_unix_server(lambda reader, writer: asyncio.sleep(60), socket_path):
        connecting = asyncio.create_task(WorkerClient.connect(socket_path))
        await asyncio.sleep(0.05)
        assert not connecting.done()
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting


async def test_connecting_to_nothing_fails(tmp_path: Path):
    with pytest.raises(OSError, match="No such file"):
        await WorkerClient.connect(str(tmp_path / "none"))


def test_unread_text_is_merged_with_its_counts():
    receiver = Receiver("r")
    receiver.put(OutputDelta("r", text="a", num_text_tokens=1, prompt_tokens=5))
    receiver.put(OutputDelta("r", text="bc", num_text_tokens=2))
    assert receiver.take() == OutputDelta("r", text="abc", num_text_tokens=3, prompt_tokens=5)


def test_what_is_told_of_a_prompt_is_merged_before_its_answer():
    receiver, likely = Receiver("r"), [TokenLogprobs(-float(i), []) for i in range(3)]
    receiver.put(OutputDelta("r", prompt_logprobs=likely[:1]))
    receiver.put(OutputDelta("r", prompt_logprobs=likely[1:2]))
    receiver.put(OutputDelta("r", [7], cached_tokens=4, queue_seconds=0.5, prompt_logprobs=likely[2:]))
    receiver.put(OutputDelta("r", [8]))
    expected = OutputDelta("r", [7, 8], cached_tokens=4, queue_seconds=0.5, prompt_logprobs=likely)
    assert receiver.take() == expected
