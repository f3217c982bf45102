"""A connection to a worker that somebody else supervises."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

import pytest

from batching.link import WorkerConnection
from batching.protocol import Stats, frame
from batching.stats import WorkerStats
from tests.fakes import eventually, make_info


class Worker:
    """Says hello, and dies when it is told to."""

    def __init__(self, socket_path: str) -> None:
        self._socket_path = socket_path
        self._gateways: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None
        self._starts = 0

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._greet, self._socket_path)
        self._starts += 1

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._gateways.append(writer)
        writer.write(frame(Stats(WorkerStats(restarts=self._starts - 1))))
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    def die(self) -> None:
        assert self._server is not None
        self._server.close()
        for gateway in self._gateways:
            gateway.transport.abort()
        os.unlink(self._socket_path)

    @property
    def num_connected(self) -> int:
        return sum(not gateway.is_closing() for gateway in self._gateways)


@pytest.fixture
async def worker(socket_path: str) -> AsyncIterator[Worker]:
    worker = Worker(socket_path)
    await worker.start()
    yield worker
    worker.die()


@pytest.fixture
async def connection(socket_path: str) -> AsyncIterator[WorkerConnection]:
    connection = WorkerConnection(socket_path, "m@1", make_info())
    yield connection
    await connection.stop()
    assert connection.client is None


async def test_it_is_connected_when_it_has_started(worker, connection):
    assert connection.info == make_info()
    await connection.start()
    assert connection.client.stats.restarts == 0


async def test_a_worker_that_comes_back_is_found_again(worker, connection):
    await connection.start()
    for restarts in (1, 2):
        client = connection.client
        worker.die()
        await eventually(lambda: connection.client is None)
        assert client.closed.is_set()
        await worker.start()
        await eventually(lambda: connection.client is not None)
        assert connection.client.stats.restarts == restarts


async def test_a_worker_that_is_away_at_the_start(socket_path, connection):
    await connection.start()
    assert connection.client is None
    worker = Worker(socket_path)
    await worker.start()
    await eventually(lambda: connection.client is not None)
    worker.die()


async def test_stopping_leaves_the_worker(worker, connection):
    await connection.start()
    await connection.stop()
    await eventually(lambda: not worker.num_connected)


async def test_stopping_before_the_start(connection):
    await connection.stop()


async def test_a_worker_that_is_known_to_be_back_is_connected_at_once(worker, connection, monkeypatch):
    await connection.start()
    await connection.refresh()  # nothing to do
    monkeypatch.setattr("batching.link.FIRST_DELAY", 3600.0)
    worker.die()
    await eventually(lambda: connection.client is None)
    await worker.start()
    await asyncio.wait_for(connection.refresh(), 30)
    assert connection.client.stats.restarts == 1


async def test_a_worker_that_is_said_to_be_back_and_is_not(socket_path, connection):
    await connection.start()
    await asyncio.wait_for(connection.refresh(), 30)
    assert connection.client is None
