"""A ledger whose every step is one script on a server that any number of gateways share: all but the connection.

All keys of an account begin with `{prefix}:{account}:` with the braces in them, Redis Cluster's hash tag, so they
share a slot: `e` marks the account as open, `b` are its buckets, `g` its gauges, `d<day>` and `m<month>` its
budgets, `l` its leases, `u` the tokens they last reported, `o` the leases that are open, by when they expire, `f`
those that are not, by when they are forgotten, `r<month>` the days that were restored, `a` its audit log. All of
them expire when they lie idle.
"""

import asyncio
import hashlib
import itertools
import json
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from importlib import resources
from typing import Any, Protocol

from quota.encoding import CODES, audit_record, decision, encode, layer_code, remaining, usage
from quota.held import HeldLease, HeldLeases
from quota.ledger import (
    BUDGET_GRACE_MS,
    EXPIRED_LEASE_PERIODS,
    REAP_PER_CALL,
    AccountUsage,
    AuditRecord,
    IntegrityError,
    LedgerUnavailable,
    PastUsage,
    QuotaDecision,
    Remaining,
    require_count,
)
from quota.levels import Dimension, Kind, Layer, Level

RENEWALS_PER_CALL = 1000
RECOVERY_MS = 2500
"""Once Redis has lost its memory: the time in which gateways tell it what they run, before anything new is admitted."""
WATCH_EVERY = 0.5  # seconds
_LIBRARY = ("store", "counters", "commit", "leases")
_SCRIPTS = ("reserve", "finish", "renew", "peek", "restore", "usage", "integrity", "adopt", "known")

History = Callable[[str, Collection[str]], Awaitable[Iterable[PastUsage]]]
"""An account's durable usage of this month, by layer and day, without that of the requests with these lease ids."""

log = logging.getLogger("penstock.quota")


@dataclass(frozen=True, slots=True)
class Epoch:
    """A memory of Redis: its name, when the one before was lost (0: there was none), and the time now, in ms."""

    name: str
    lost_ms: int
    now_ms: int


class Script:
    """Lua text and its digest, which is how Redis knows it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class Server(Protocol):
    """Where the scripts run. Raises `LedgerUnavailable` where there is no answer, `IntegrityError` for an error."""

    @property
    def is_up(self) -> bool: ...

    async def run(self, script: Script, *arguments: str | bytes | int) -> Any:
        """One script on its first argument, which is its key."""
        ...

    async def ask(self, *command: str | bytes | int) -> Any:
        """One command."""
        ...

    async def close(self) -> None: ...


class ScriptedLedger:
    """A `Ledger` in scripts. Every method may raise `LedgerUnavailable`.

    An account is **opened** by the first request that meets it in this Redis: its budgets are filled from
    `history`, in one step, and only then is anything admitted. `epoch` is the one that
    was last remembered (None: never): if Redis holds none now, it lost its memory, and every bucket restarts full.
    `remember` is given each new epoch before anything is admitted in it, to be kept in durable storage.

    What ran when the memory was lost is told again by the gateways that run it: each keeps what it has admitted,
    `watch` notices the loss, and for `recovery_ms` after it nothing else is admitted (`LedgerUnavailable`). So budgets
    and concurrency are exact again; a gateway that could not tell in time has its leases expired.

    `clock` (ms) is for tests: without it the time is Redis's own. `audit` keeps a log of every step (`audit_log`).
    """

    def __init__(
        self,
        link: Server,
        prefix: str,
        lease_ms: int,
        history: History | None,
        epoch: str | None,
        remember: Callable[[str], Awaitable[None]] | None,
        audit: bool,
        clock: Callable[[], int] | None,
        recovery_ms: int,
    ) -> None:
        self._link = link
        self._prefix = prefix
        self._clock = clock
        self._history = history
        self._epoch = epoch
        self._remember = remember
        self._scripts = load_scripts(lease_ms, audit)
        self._epoch_script = Script(_read("epoch"))
        self._nonces = map(f"{secrets.token_hex(8)}-{{}}".format, itertools.count())
        self._opening: dict[str, asyncio.Task[None]] = {}
        self._lease_ms = lease_ms
        self._recovery_ms = recovery_ms
        self._held = HeldLeases()
        self._unopened: set[str] = set()  # accounts that leases were told again of

    @property
    def is_up(self) -> bool:
        """Whether Redis answered lately. While it is False every call fails at once."""
        return self._link.is_up

    # -- the contract ------------------------------------------------------------------------------------

    async def reserve(self, lease_id: str, account: str, layers: Collection[Layer], tokens: int) -> QuotaDecision:
        require_count(tokens)
        layers = tuple(layers)
        encoded = encode(layers)
        fault = encoded.fault(tokens)
        reply = await self._open_and_run("reserve", account, lease_id, tokens, encoded.text, "1" if fault else "0")
        if reply[0] == b"impossible":
            assert fault is not None
            raise fault
        if reply[0] != b"refused":
            admitted_ms = int(reply[2]) - self._lease_ms
            self._held.add(account, lease_id, HeldLease(encoded.text, tokens, admitted_ms, reply[6].decode()))
        return decision(lease_id, account, layers, encoded, reply)

    async def settle(self, lease_id: str, account: str, tokens: int) -> bool:
        require_count(tokens)
        reply = await self._run("finish", account, lease_id, tokens, "settled")
        is_ended = bool(reply == 1)
        if isinstance(reply, bytes):  # no lease that this memory knows: it was admitted in another one, or nowhere
            lost = self._held.forgotten(account, [lease_id], reply.decode())
            if lost:
                await self._adopt(account, {lease_id: replace(lost[lease_id], tokens=tokens)}, "settled")
                await self._run("finish", account, lease_id, tokens, "settled")  # `recover` may have been first
            is_ended = bool(lost)
        self._held.drop(account, lease_id)
        return is_ended

    async def release(self, lease_id: str, account: str) -> bool:
        reply = await self._run("finish", account, lease_id, 0, "released")
        self._held.drop(account, lease_id)
        return bool(reply == 1)

    async def renew(self, account: str, used_by_lease: Mapping[str, int]) -> frozenset[str]:
        gone: set[str] = set()
        reports = list(used_by_lease.items())
        for start in range(0, max(1, len(reports)), RENEWALS_PER_CALL):
            chunk = reports[start : start + RENEWALS_PER_CALL]
            for _, used in chunk:
                require_count(used)
            epoch, *ids = await self._run("renew", account, *(part for report in chunk for part in report))
            gone.update(lease_id.decode() for lease_id in ids)
            if lost := self._held.forgotten(account, gone, epoch.decode()):
                gone -= lost.keys() - await self._adopt(account, lost, "open")
        return frozenset(gone)

    async def peek(self, account: str, layers: Collection[Layer]) -> Remaining:
        encoded = encode(tuple(layers))
        now, used = await self._open_and_run("peek", account, encoded.text)
        return remaining(encoded, used, int(now))

    async def restore(self, account: str, level: Level, name: str, day: date, requests: int, tokens: int) -> bool:
        rows = _rows([PastUsage(level, name, day, requests, tokens)])
        return bool(await self._open_and_run("restore", account, rows))

    async def usage(self, account: str) -> AccountUsage:
        return usage(account, await self._open_and_run("usage", account))

    async def check_integrity(self) -> None:
        """Looks at every account: it goes through all keys of the database."""
        cursor = b"0"
        while True:
            cursor, keys = await self._link.ask("SCAN", cursor, "MATCH", f"{self._prefix}:{{*}}:e", "COUNT", 10_000)
            for key in keys:
                if wrong := await self._link.run(self._scripts["integrity"], key, self._now(), ""):
                    raise IntegrityError(f"{key.decode()}: {wrong[0].decode()}")
            if cursor == b"0":
                return

    async def close(self) -> None:
        await self._link.close()

    # -- epochs ------------------------------------------------------------------------------------------

    async def epoch(self) -> str | None:
        """The one kept in Redis. None: Redis is new, or has lost its memory."""
        value = await self._link.ask("GET", self._epoch_key)
        return None if value is None else value.split()[0].decode()

    @property
    def _epoch_key(self) -> str:
        return f"{self._prefix}:epoch"

    async def _learn_epoch(self) -> Epoch:
        """The one of Redis's memory, a new one if it has none: remembered before anything is admitted in it."""
        fresh, knows = secrets.token_hex(8), "0" if self._epoch is None else "1"
        value = await self._link.run(self._epoch_script, self._epoch_key, self._now(), fresh, knows)
        name, lost_ms, now_ms = value.decode().split()
        if name != self._epoch:
            if self._remember is not None:
                await self._remember(name)
            self._epoch = name
        return Epoch(name, int(lost_ms), int(now_ms))

    async def watch(self) -> None:
        """Look twice a second whether Redis has lost its memory, and tell it what runs here. Never returns."""
        while True:
            await asyncio.sleep(WATCH_EVERY)
            try:
                await self.recover()
            except LedgerUnavailable as error:
                log.debug("Redis could not be told what runs: %s", error)
            except Exception:  # whatever it is: nobody else would try again
                log.exception("Redis could not be told what runs")

    async def recover(self) -> None:
        """Tell Redis of the leases that it has forgotten; open their accounts once every gateway has had time to."""
        epoch = await self.epoch()
        if epoch != self._epoch:
            epoch = (await self._learn_epoch()).name
        if epoch is not None:
            for account, leases in self._held.forgotten_by_account(epoch).items():
                late = await self._adopt(account, leases, "open")
                self._held.belong(account, leases.keys() - late, epoch)
                for lease_id in self._held.gone(account, leases):  # released meanwhile, when nothing was known of it
                    await self._run("finish", account, lease_id, 0, "released")
        for account in sorted(self._unopened):
            await self._open_and_run("peek", account, b"[]")
            self._unopened.discard(account)

    async def _adopt(self, account: str, leases: Mapping[str, HeldLease], state: str) -> frozenset[str]:
        """Answers those that come too late."""
        self._unopened.add(account)
        told = [part for lease_id, held in leases.items() for part in (lease_id, *held.told())]
        late = await self._run("adopt", account, self._recovery_ms, state, *told)
        return frozenset(lease_id.decode() for lease_id in late)

    async def _open_and_run(self, script: str, account: str, *arguments: str | bytes | int) -> Any:
        for _ in range(3):
            reply = await self._run(script, account, *arguments)
            if not isinstance(reply, list) or reply[0] != b"unopened":
                return reply
            await self._open_once(account, reply[1].decode())
        raise LedgerUnavailable("Redis loses its memory again and again")

    async def _open_once(self, account: str, nonce: str) -> None:
        """Many requests may find an account unopened: one opens it for all of them."""
        if nonce not in self._opening:
            task = self._opening[nonce] = asyncio.create_task(self._open(account, nonce))
            task.add_done_callback(lambda _: self._opening.pop(nonce))
        await asyncio.shield(self._opening[nonce])

    async def _open(self, account: str, nonce: str) -> None:
        """Nothing is admitted on less than the account's durable usage, even if Redis fails in the middle.

        The script that found the account unopened left `nonce` in its marker. The epoch is asked for after
        that, and the account is opened only while `nonce` still stands there: so the memory that it is opened
        in is the one whose epoch was seen, or no memory was lost in between.
        """
        epoch = await self._learn_epoch()
        if epoch.lost_ms and epoch.now_ms < epoch.lost_ms + self._recovery_ms:
            raise LedgerUnavailable("Redis has lost its memory and is being told what runs")
        known = [lease_id.decode() for lease_id in await self._run("known", account)]
        rows = _rows(await self._past(account, known))
        await self._run("restore", account, rows, epoch.lost_ms, epoch.name, nonce=nonce)

    async def _past(self, account: str, known: Collection[str]) -> Iterable[PastUsage]:
        if self._history is None:
            return ()
        try:
            return await self._history(account, known)
        except Exception as error:  # whatever it is: nobody knows what the account has spent
            raise LedgerUnavailable(f"the durable usage of account {account!r} can't be read: {error}") from error

    # -- scripts -----------------------------------------------------------------------------------------

    async def _run(self, script: str, account: str, *arguments: str | bytes | int, nonce: str = "") -> Any:
        key = f"{self._prefix}:{{{_tag(account)}}}:e"
        return await self._link.run(self._scripts[script], key, self._now(), nonce or next(self._nonces), *arguments)

    def _now(self) -> str:
        return str(self._clock()) if self._clock else ""

    # -- for tests and operators -------------------------------------------------------------------------

    async def audit_log(self, account: str, *, drain: bool = False) -> AsyncIterator[AuditRecord]:
        """The account's steps, oldest first, if `audit` is set; about the last million of them.

        `drain` takes what was read out of the log.
        """
        key, start = f"{self._prefix}:{{{_tag(account)}}}:a", "-"
        while entries := await self._link.ask("XRANGE", key, start, "+", "COUNT", 1000):
            for _, entry in entries:
                yield audit_record(account, entry)
            start = "(" + entries[-1][0].decode()
            if drain:
                await self._link.ask("XDEL", key, *(entry_id for entry_id, _ in entries))


def load_scripts(lease_ms: int, audit: bool) -> dict[str, Script]:
    """Each script behind the shared helpers, behind the constants of the contract."""
    budgets = ", ".join(f"'{CODES[d]}'" for d in Dimension if d.kind is Kind.BUDGET)
    constants = (
        f"local LEASE, PERIODS, REAP, GRACE = {lease_ms}, {EXPIRED_LEASE_PERIODS}, {REAP_PER_CALL}, {BUDGET_GRACE_MS}\n"
        f"local AUDIT, BUDGETS = {str(audit).lower()}, {{ {budgets} }}\n"
    )
    library = constants + "".join(map(_read, _LIBRARY))
    return {name: Script(library + _read(name)) for name in _SCRIPTS}


def _read(script: str) -> str:
    return (resources.files("quota") / "scripts" / f"{script}.lua").read_text()


def _rows(past: Iterable[PastUsage]) -> str:
    rows = []
    for row in past:
        require_count(row.requests)
        require_count(row.tokens)
        day = (row.day - date(1970, 1, 1)).days
        rows.append([layer_code(row.level, row.name), day, row.requests, row.tokens])
    return json.dumps(rows, separators=(",", ":"), ensure_ascii=False)


def _tag(account: str) -> str:
    """The account as a hash tag: never empty, no brace inside."""
    return account.replace("%", "%25").replace("{", "%7B").replace("}", "%7D") or "%"
