"""The shared ledger: any number of gateways on one Redis (7 or newer), each step one function and one round trip.

Redis must not evict keys (`maxmemory-policy noeviction`): it would forget what was spent.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from redis import exceptions
from redis.asyncio import Connection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from quota.breaker import PROBE_EVERY, Breaker
from quota.ledger import LEASE_MS, IntegrityError, LedgerUnavailable, NotAsked
from quota.lua import Library
from quota.patience import patience
from quota.scripted import RECOVERY_MS, History, ScriptedLedger

TIMEOUT = 0.25  # seconds an operation may take, its one repetition included
MAX_CONNECTIONS = 16
_NO_ANSWER = (
    OSError,
    ValueError,  # it is no Redis that answers
    exceptions.InvalidResponse,
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError,
    exceptions.ClusterDownError,
    exceptions.MasterDownError,
    exceptions.TryAgainError,
)
_UNKNOWN_FUNCTION = "Function not found"
_NOT_NOW = {"BUSY", "MISCONF", "NOREPLICAS", "UNKILLABLE"}  # answers of a server that takes no write now

log = logging.getLogger("penstock.quota")


class Link:
    """Asks Redis, a bounded number of questions at a time, each within `TIMEOUT`.

    Raises `LedgerUnavailable` where there is no answer, and at once after `FAILURES` of those in a row: then a
    probe asks twice a second, beside the requests, until Redis takes a write again.
    """

    def __init__(
        self, url: str, probe_key: str, max_connections: int, timeout: float, without: str = "quotas go on without it"
    ) -> None:
        """`without`: what happens while it does not answer, for the log."""
        self._pool: ConnectionPool = ConnectionPool.from_url(
            url,
            max_connections=max_connections,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=None,  # ours covers the whole operation, and a busy event loop does not trip it
            socket_connect_timeout=None,
            protocol=2,
        )
        self._slots = asyncio.Semaphore(max_connections)
        self._timeout = timeout
        self._probe_key = probe_key
        self._without = without
        self._breaker = Breaker()
        self._probing: asyncio.Task[None] | None = None

    @property
    def is_up(self) -> bool:
        return not self._breaker.is_open

    async def run(self, library: Library, step: str, *arguments: str | bytes | int) -> Any:
        """One step on its first argument, which is its key. One round trip, once Redis knows the library."""
        call = "FCALL", library.function(step), 1, *arguments
        try:
            try:
                return await self.ask(*call)
            except exceptions.ResponseError as error:
                if str(error) != _UNKNOWN_FUNCTION:
                    raise
                await self.ask("FUNCTION", "LOAD", "REPLACE", library.text)  # another gateway may be as quick
                return await self.ask(*call)
        except exceptions.ResponseError as error:  # nothing was written
            raise IntegrityError(f"the keys beside {arguments[0]!r} hold what is not the ledger's: {error}") from error

    async def ask(self, *command: str | bytes | int) -> Any:
        """One command, asked once more on another connection if its own breaks before the answer.

        Raises `NotAsked` where it could not even be sent: the step was not taken.
        """
        asked_at: float | None = None
        must_wait = self._slots.locked()
        try:
            async with patience(self._timeout), self._slots:
                if self._breaker.is_open or (must_wait and self._breaker.num_failures):
                    raise NotAsked("Redis does not answer")
                asked_at = time.monotonic()
                reply = await self._exchange_twice(*command)
        except NotAsked:
            raise
        except _NO_ANSWER as error:
            if asked_at is None:
                raise NotAsked("too many questions wait for Redis") from None
            self._failed(error, asked_at)
            raise LedgerUnavailable(f"Redis gives no answer: {_reason(error)}") from error
        except exceptions.ResponseError as error:
            if str(error).split(" ", 1)[0] in _NOT_NOW:
                self._failed(error, asked_at)
                raise LedgerUnavailable(f"Redis takes no write: {error}") from error
            self._breaker.succeeded()
            raise
        self._breaker.succeeded()
        return reply

    async def _exchange_twice(self, *command: str | bytes | int) -> Any:
        try:
            return await self._exchange(*command)
        except exceptions.ConnectionError:
            return await self._exchange(*command)

    async def _exchange(self, *command: str | bytes | int) -> Any:
        async with self._connection() as connection:
            await connection.send_command(*command)
            return await connection.read_response()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        connection: Connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
        try:
            yield connection
        except exceptions.ResponseError:
            raise
        except BaseException:  # a reply may still come, to whoever reads next
            await connection.disconnect(nowait=True)
            raise
        finally:
            await self._pool.release(connection)

    def _failed(self, error: Exception, asked_at: float | None) -> None:
        """A question that waited for its turn, and had little time left for its answer, says nothing of Redis."""
        if isinstance(error, TimeoutError) and asked_at and time.monotonic() - asked_at < self._timeout / 2:
            return
        if self._breaker.failed():
            log.warning("Redis does not answer, %s: %s", self._without, _reason(error))
            self._probing = asyncio.create_task(self._probe())

    async def _probe(self) -> None:
        while self._breaker.is_open:
            await asyncio.sleep(PROBE_EVERY)
            try:
                async with patience(self._timeout):
                    await self._exchange("SET", self._probe_key, "1", "PX", 60_000)
            except Exception as error:  # whatever it is: nobody else would try again
                log.debug("Redis still does not answer: %s", _reason(error))
            else:
                self._breaker.succeeded()
                log.warning("Redis answers again")

    async def close(self) -> None:
        if self._probing is not None:
            self._probing.cancel()
        await self._pool.disconnect()


class RedisLedger(ScriptedLedger):
    """A `Ledger` in the Redis at `url`. `timeout` is in seconds, for one step."""

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "penstock",
        lease_ms: int = LEASE_MS,
        history: History | None = None,
        epoch: str | None = None,
        remember: Callable[[str], Awaitable[None]] | None = None,
        audit: bool = False,
        clock: Callable[[], int] | None = None,
        max_connections: int = MAX_CONNECTIONS,
        timeout: float = TIMEOUT,
        recovery_ms: int = RECOVERY_MS,
    ) -> None:
        link = Link(url, f"{prefix}:probe", max_connections, timeout)
        super().__init__(link, prefix, lease_ms, history, epoch, remember, audit, clock, recovery_ms)

    async def check_server(self) -> None:
        """Raises ValueError, with what to change, if this Redis can't keep a ledger."""
        try:
            text = await self._link.ask("INFO", "everything")
        except exceptions.ResponseError as error:
            raise ValueError(
                f"expected a user who may run INFO, FUNCTION, FCALL and what our functions call: {error}"
            ) from None
        info = dict(line.split(":", 1) for line in text.decode().split("\r\n") if ":" in line)
        if not {"redis_version", "maxmemory", "maxmemory_policy"} <= info.keys():
            raise ValueError("expected Redis 7 or newer: its INFO tells neither its version nor its memory policy")
        if int(info["redis_version"].split(".")[0]) < 7:
            raise ValueError(f"Redis {info['redis_version']} is too old: the shared ledger needs 7 or newer")
        if int(info["maxmemory"]) and info["maxmemory_policy"] != "noeviction":
            policy = info["maxmemory_policy"]
            raise ValueError(
                f"Redis evicts keys ({policy}) and would forget quotas: set maxmemory-policy to noeviction"
            )


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
