from __future__ import annotations

import asyncio

import pytest

from server.outbox import EXTENSION, MAX_UNSENT_BYTES, Burst, Outbox, chunk_writer


class Socket:
    """A transport and its flow; `writes` may be shared by several."""

    def __init__(self, writes: list[bytes] | None = None) -> None:
        self.writes = [] if writes is None else writes
        self.write = self.writes.append
        self.write_paused = False
        self.closing = False

    def is_closing(self) -> bool:
        return self.closing


def outbox_before(socket: Socket, burst: Burst | None = None) -> Outbox:
    return Outbox(socket, socket, burst or Burst())


async def test_what_is_written_in_one_turn_of_the_loop_leaves_at_its_end_connection_by_connection() -> None:
    writes, burst = [], Burst()
    first, second = (outbox_before(Socket(writes), burst) for _ in range(2))
    first.write(b"a")
    second.write(b"b")
    first.write(b"c")
    assert writes == []
    await asyncio.sleep(0)
    assert writes == [b"ac", b"b"]
    first.write(b"d")
    await asyncio.sleep(0)
    assert writes == [b"ac", b"b", b"d"]


async def test_what_many_tasks_write_in_one_turn_comes_behind_the_last_of_them() -> None:
    told: list[bytes] = []
    burst = Burst()
    outboxes = [outbox_before(Socket(told), burst) for _ in range(3)]
    ready = asyncio.Event()

    async def answer(outbox: Outbox, name: bytes) -> None:
        await ready.wait()
        told.append(b"computed")
        outbox.write(name)

    tasks = [asyncio.create_task(answer(*each)) for each in zip(outboxes, (b"a", b"b", b"c"), strict=True)]
    await asyncio.sleep(0)
    ready.set()
    await asyncio.gather(*tasks)
    assert told == [b"computed"] * 3 + [b"a", b"b", b"c"]


async def test_much_waits_for_nobody() -> None:
    socket = Socket()
    outbox = outbox_before(socket)
    outbox.write(b"a")
    outbox.write(b"b" * MAX_UNSENT_BYTES)
    assert socket.writes == [b"a" + b"b" * MAX_UNSENT_BYTES]
    await asyncio.sleep(0)
    assert len(socket.writes) == 1


async def test_what_is_flushed_before_is_not_written_twice() -> None:
    socket = Socket()
    outbox = outbox_before(socket)
    outbox.write(b"a")
    outbox.flush()
    await asyncio.sleep(0)
    assert socket.writes == [b"a"]


async def test_a_connection_that_has_closed_meanwhile_gets_nothing() -> None:
    socket = Socket()
    outbox = outbox_before(socket)
    outbox.write(b"a")
    socket.closing = True
    await asyncio.sleep(0)
    assert socket.writes == []


async def test_a_chunk_is_framed() -> None:
    socket = Socket()
    outbox = outbox_before(socket)
    assert outbox.write_chunk(b"x" * 26)
    await asyncio.sleep(0)
    assert socket.writes == [b"1a\r\n" + b"x" * 26 + b"\r\n"]


@pytest.mark.parametrize("state", ["write_paused", "closing"])
async def test_one_for_a_reader_that_is_slow_or_gone_is_left_to_whoever_can_wait(state: str) -> None:
    socket = Socket()
    setattr(socket, state, True)
    outbox = outbox_before(socket)
    assert not outbox.write_chunk(b"x")
    await asyncio.sleep(0)
    assert socket.writes == []


def test_other_servers_have_none() -> None:
    write_chunk = outbox_before(Socket()).write_chunk
    assert chunk_writer({"extensions": {EXTENSION: {"write": write_chunk}}}) == write_chunk
    assert chunk_writer({"extensions": {"tls": {}}}) is None
    assert chunk_writer({}) is None
