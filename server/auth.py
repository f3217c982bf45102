"""A presented key -> `Principal`, with a small cache."""

import asyncio
import hmac
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from sqlalchemy.exc import SQLAlchemyError

from server import keys
from server.errors import AuthenticationFailed, Overloaded
from server.store.records import Credential, KeyKind, utc_now

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Principal:
    """Whose request it is, and what its key may do."""

    account_id: str
    account_name: str
    key_id: str
    kind: KeyKind
    models: frozenset[str] | None  # `name` (all its versions) or `name@version`; None: all
    features: frozenset[str] | None  # None: all
    plan: str
    overrides: Mapping[str, Any]  # of the account: the tables of a plan
    limits: Mapping[str, Any]  # of the key: a table of limits
    expires_at: datetime | None

    def may_use_model(self, name: str, version: str) -> bool:
        return self.models is None or name in self.models or f"{name}@{version}" in self.models

    def may_use_feature(self, feature: str) -> bool:
        return self.features is None or feature in self.features


class KeySource(Protocol):
    """What authentication asks of `server.store.keys.Keys`."""

    async def find_by_id(self, key_id: str) -> Credential | None: ...

    async def find_by_digest(self, digest: bytes) -> Credential | None: ...

    async def touch(self, used: Mapping[str, datetime]) -> None: ...


class Authenticator:
    """Answers from memory for `cache_ttl` seconds, so that a revocation made elsewhere holds soon after.

    Misses of one key share one query. Keys never seen to be good share `STRANGERS` queries at a time, so that a
    flood of bad ones neither loads the database nor delays those that are known; at most `MAX_WAITING` wait. Memory
    is bounded by `cache_size` answers, good and bad ones apart. One event loop.
    """

    STRANGERS = 4
    MAX_WAITING = 1024

    def __init__(
        self,
        source: KeySource,
        pepper: bytes,
        *,
        cache_ttl: float = 3.0,
        cache_size: int = 10_000,
        store_timeout: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._source = source
        self._pepper = pepper
        self._cache_ttl = cache_ttl
        self._cache_size = cache_size
        self._store_timeout = store_timeout
        self._clock = clock
        self._now = now
        self._good: _Answers = OrderedDict()  # stale ones stay until evicted: they tell who is no stranger
        self._bad: _Answers = OrderedDict()
        self._loading: dict[bytes, asyncio.Task[Principal | None]] = {}
        self._generation = 0  # of what is stored: an answer asked for in an older one is not kept
        self._lane = asyncio.Semaphore(self.STRANGERS)
        self._waiting = 0
        self._used: dict[str, datetime] = {}
        self._task: asyncio.Task[None] | None = None

    async def authenticate(self, presented: str | None) -> Principal:
        """Raises `AuthenticationFailed`, with one message for every wrong key, and `Overloaded` when the key can't
        be checked: an answer older than `cache_ttl` is never used, even while the database is away."""
        if not presented:
            raise missing_key()
        if not keys.may_be_key(presented):
            raise _wrong()
        parsed = keys.parse(presented)
        digest = keys.digest(self._pepper, presented)
        answer = self._cached(digest)
        principal = answer.principal if answer else await self._load(digest, parsed)
        now = self._now()
        if principal is None or (principal.expires_at is not None and principal.expires_at <= now):
            raise _wrong()
        self._used[principal.key_id] = now
        return principal

    async def still_valid(self, key_id: str) -> Principal | None:
        """Whose key this is, asked anew: for work that goes on after its request. None: it is good for nothing any
        more. Raises `Overloaded` when that can't be told."""
        try:
            async with asyncio.timeout(self._store_timeout):
                credential = await self._source.find_by_id(key_id)
        except _UNAVAILABLE as error:
            raise _unavailable() from error
        principal = _judge(credential, credential.digest) if credential is not None else None
        expired = principal is not None and principal.expires_at is not None and principal.expires_at <= self._now()
        return None if expired else principal

    def invalidate(self, key_id: str) -> None:
        """A key was changed or revoked here: the next request that presents it asks the database."""
        self._forget(lambda principal: principal.key_id == key_id)

    def invalidate_account(self, account_id: str) -> None:
        """The same for all keys of an account."""
        self._forget(lambda principal: principal.account_id == account_id)

    def start(self, interval_s: float = 30.0) -> None:
        """Write the times of last use every `interval_s` seconds."""
        self._task = asyncio.create_task(self._write_used(interval_s), name="last-used")

    async def flush_used(self) -> None:
        """Write the times of last use; if the database is away they wait for the next call."""
        used, self._used = self._used, {}
        if not used:
            return
        try:
            await self._source.touch(used)
        except _UNAVAILABLE as error:
            log.warning("last use of %d keys not written: %s", len(used), type(error).__name__)
            self._used = used | self._used

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.flush_used()

    def _cached(self, digest: bytes) -> "_Answer | None":
        for answers in (self._good, self._bad):
            answer = answers.get(digest)
            if answer is not None and self._clock() - answer.asked_at < self._cache_ttl:
                answers.move_to_end(digest)
                return answer
        return None

    async def _load(self, digest: bytes, parsed: keys.ParsedKey | None) -> Principal | None:
        task = self._loading.get(digest)
        if task is None:
            task = asyncio.create_task(self._ask(digest, parsed))
            self._loading[digest] = task
            task.add_done_callback(lambda done: self._loaded(digest, done))
        return await asyncio.shield(task)  # one waiter's cancellation is not the others'

    def _loaded(self, digest: bytes, task: "asyncio.Task[Principal | None]") -> None:
        if self._loading.get(digest) is task:
            del self._loading[digest]
        if not task.cancelled():
            task.exception()  # seen here, for the case that every waiter has left

    async def _ask(self, digest: bytes, parsed: keys.ParsedKey | None) -> Principal | None:
        if digest in self._good:
            return await self._query(digest, parsed)
        if self._waiting >= self.MAX_WAITING:
            raise _unavailable()
        self._waiting += 1
        try:
            async with self._lane:
                return await self._query(digest, parsed)
        finally:
            self._waiting -= 1

    async def _query(self, digest: bytes, parsed: keys.ParsedKey | None) -> Principal | None:
        asked_at, generation = self._clock(), self._generation
        try:
            async with asyncio.timeout(self._store_timeout):
                if parsed is not None:
                    credential = await self._source.find_by_id(parsed.id)
                else:
                    credential = await self._source.find_by_digest(digest)
        except _UNAVAILABLE as error:
            log.warning("a key can't be checked: %s", type(error).__name__)
            raise _unavailable() from error
        principal = _judge(credential, digest)
        if generation == self._generation:
            self._keep(digest, _Answer(principal, asked_at))
        return principal

    def _keep(self, digest: bytes, answer: "_Answer") -> None:
        mine, other = (self._good, self._bad) if answer.principal else (self._bad, self._good)
        other.pop(digest, None)
        mine[digest] = answer
        mine.move_to_end(digest)
        while len(mine) > self._cache_size:
            mine.popitem(last=False)

    def _forget(self, concerned: Callable[[Principal], bool]) -> None:
        self._generation += 1
        self._loading.clear()  # their waiters asked before the change; those who come now ask again
        self._bad.clear()
        for digest, answer in list(self._good.items()):
            if answer.principal is not None and concerned(answer.principal):
                del self._good[digest]

    async def _write_used(self, interval_s: float) -> None:
        while True:
            await asyncio.sleep(interval_s)
            await self.flush_used()


@dataclass(frozen=True, slots=True)
class _Answer:
    principal: Principal | None  # None: not a key, revoked, or of a disabled account
    asked_at: float


_Answers = OrderedDict[bytes, _Answer]
_UNAVAILABLE = (SQLAlchemyError, OSError, TimeoutError)
_NO_DIGEST = bytes(32)


def _judge(credential: Credential | None, digest: bytes) -> Principal | None:
    """Compares in constant time, and also where there is nothing to compare with."""
    matches = hmac.compare_digest(credential.digest if credential else _NO_DIGEST, digest)
    if credential is None or not matches:
        return None
    key, account = credential.key, credential.account
    if key.revoked_at is not None or account.disabled:
        log.info("key %s of account %s is refused: revoked or disabled", key.id, account.name)
        return None
    return Principal(
        account_id=account.id,
        account_name=account.name,
        key_id=key.id,
        kind=key.kind,
        models=key.models,
        features=key.features,
        plan=account.plan,
        overrides=account.overrides,
        limits=key.limits,
        expires_at=key.expires_at,
    )


def missing_key() -> AuthenticationFailed:
    return AuthenticationFailed(
        "You didn't provide an API key. You need to provide your API key in one header: Authorization, using Bearer"
        " auth (i.e. Authorization: Bearer YOUR_KEY), or x-api-key.",
        headers={"www-authenticate": "Bearer"},
    )


def _wrong() -> AuthenticationFailed:
    return AuthenticationFailed("Incorrect API key provided.", headers={"www-authenticate": "Bearer"})


def _unavailable() -> Overloaded:
    return Overloaded("The API key can't be checked at the moment.", retry_after_ms=1000)
