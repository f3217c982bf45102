"""A computation that several identical requests read, each at its own pace."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from typing import Protocol

import msgspec

from engines.types import Usage
from server import logs
from server.cache.recording import Recording, record, replayed
from server.choice import Piece, compact
from server.computation import Computation
from server.errors import APIError, ServerError

_encode = msgspec.msgpack.Encoder().encode


class Source(Protocol):
    """Where a request's pieces come from: a recording, or a computation that is under way."""

    ready: asyncio.Event  # set when there is something to take, or nothing more will come

    @property
    def failure(self) -> APIError | None:
        """Why no more comes, once everything was taken. Each reader's own."""

    @property
    def is_done(self) -> bool:
        """The answer is complete, and all of it was taken."""

    @property
    def usage(self) -> Usage: ...

    def take(self) -> list[Piece]: ...

    def wait_for_all(self) -> None:
        """`ready` tells of the end alone, from now on."""

    async def leave(self, error: BaseException | None) -> None:
        """Nothing is taken any more. `error`: what ended the request that took it, where it had begun."""


class Tape:
    """A recording as one request plays it."""

    failure = None

    def __init__(self, recording: Recording) -> None:
        self.ready = asyncio.Event()
        self.usage = replayed(recording.usage)
        self.is_done = False
        self._pieces = recording.pieces

    def take(self) -> list[Piece]:
        self.is_done = True
        return self._pieces

    def wait_for_all(self) -> None:
        pass

    async def leave(self, error: BaseException | None) -> None:
        pass


class Flight:
    """Runs a computation for as long as anybody reads it. `ended` is told when nobody may join it any more, and what
    there is to record of it.

    Its pieces are kept for those who may still join. Of an answer that grows beyond `max_bytes`, which would not be
    recorded, nobody may: then what all readers have taken is dropped.
    """

    def __init__(self, computation: Computation, max_bytes: int, ended: Callable[[Recording | None], None]) -> None:
        self.computation = computation
        self.failure: APIError | None = None
        self.is_complete = False
        self.was_refused = False  # it never began
        self._begun = asyncio.Event()  # or refused
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._pieces: list[Piece] = []
        self._num_dropped = 0  # of the pieces, from the first on
        self._is_open = True  # to others
        self._ended = ended
        self._readers: set[Reader] = set()
        self._task = asyncio.create_task(self._run())

    def join(self, *, computes: bool = False) -> Reader:
        reader = Reader(self, computes=computes)
        self._readers.add(reader)
        return reader

    async def begin(self) -> bool:
        """Whether it was admitted."""
        await self._begun.wait()
        return not self.was_refused

    # --- the computation

    async def _run(self) -> None:
        try:
            async with self.computation:
                self._begun.set()
                while not self.computation.is_done:
                    self._publish(await self.computation.next())
                self.is_complete = True
        except APIError as error:
            self.failure = error
        except Exception:
            logs.unexpected("a shared computation failed")
        finally:  # a cancellation comes when nobody reads any more; from elsewhere it is a failure to who does
            if self.failure is None and not self.is_complete:
                self.failure = ServerError("The server failed.")
            self.was_refused = not self._begun.is_set()
            self._begun.set()
            for reader in self._readers:
                reader.ready.set()
            self._close()

    def _publish(self, pieces: list[Piece]) -> None:
        self._pieces += pieces
        for reader in self._readers:
            if not reader.waits_for_all:
                reader.ready.set()
        if self._is_open:
            self._num_bytes += sum(len(_encode(piece)) for piece in pieces)
            if self._num_bytes > self._max_bytes:
                self._close()

    def _close(self) -> None:
        """To those who may still want to join."""
        if self._is_open:
            self._is_open = False
            self._ended(record(self._pieces, self.computation.usage) if self.is_complete else None)

    # --- its readers

    @property
    def end(self) -> int:
        """The position behind the last piece."""
        return self._num_dropped + len(self._pieces)

    def since(self, position: int) -> list[Piece]:
        return self._pieces[position - self._num_dropped :]

    def trim(self) -> None:
        if not self._is_open and self._readers:
            taken = min(reader.position for reader in self._readers) - self._num_dropped
            del self._pieces[:taken]
            self._num_dropped += taken

    async def leave(self, reader: Reader, error: BaseException | None) -> None:
        """The last one to leave takes the computation with it; what it held is let go before this returns. So it is
        when a complete one is left."""
        self._readers.discard(reader)
        if not self._readers and not self._task.done():
            self._close()
            if isinstance(error, APIError):
                self.computation.fail(error)
            elif not self.is_complete:
                self._task.cancel()
        if not self._readers or self.is_complete:
            await asyncio.wait([self._task])


class Reader:
    """One request's place in a flight. `computes`: the flight was begun for it."""

    def __init__(self, flight: Flight, *, computes: bool) -> None:
        self.ready = asyncio.Event()
        self.position = 0
        self.waits_for_all = False
        self._flight = flight
        self._computes = computes

    @property
    def failure(self) -> APIError | None:
        return copy.copy(self._flight.failure)

    @property
    def is_done(self) -> bool:
        return self._flight.is_complete and self.position == self._flight.end

    @property
    def usage(self) -> Usage:
        usage = self._flight.computation.usage
        return usage if self._computes else replayed(usage)

    def take(self) -> list[Piece]:
        self.ready.clear()
        pieces = self._flight.since(self.position)
        self.position = self._flight.end
        self._flight.trim()
        return compact(pieces)

    def wait_for_all(self) -> None:
        self.waits_for_all = True

    async def leave(self, error: BaseException | None) -> None:
        await self._flight.leave(self, error)
