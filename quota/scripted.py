"""A ledger whose every step is one function on a server that any number of gateways share: all but the connection.

All keys of an account begin with `{prefix}:{format}:{account}:`, the account's braces in them, Redis Cluster's hash
tag, so they share a slot: `e` marks the account as open, `c` are its layers' counters, `d<day>` and `m<month>` the
budgets of periods that are over, `l` its leases, `u` the tokens they last reported, `o` the leases that are open, by
when they expire, `f` those that are not, by when they are forgotten, `r<month>` the days that were restored, `a` its
audit log. All of them expire when they lie idle.
"""

import asyncio
import itertools
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from datetime import UTC, date, datetime
from typing import Any, Protocol, TypeVar

from quota.encoding import audit_record, decision, encode, remaining, usage
from quota.epochs import Epochs
from quota.held import ALONE, HeldLease, HeldLeases
from quota.ledger import (
    MAX_COUNT,
    AccountUsage,
    AuditRecord,
    IntegrityError,
    LedgerUnavailable,
    PastUsage,
    QuotaDecision,
    Remaining,
    require_count,
)
from quota.levels import Layer, Level
from quota.lua import Library, format_name, load_library
from quota.past import by_layer, rows

RENEWALS_PER_CALL = 1000
ROWS_PER_CALL = 500
TOLD_PER_CALL = 200
RECOVERY_MS = 2500
"""Once Redis has lost its memory: the time in which gateways tell it what they run, before anything new is admitted."""
OPEN_TIMEOUT = 2.0  # seconds for an account's durable usage

History = Callable[[str, Collection[str]], Awaitable[Iterable[PastUsage]]]
"""An account's durable usage of this month, by layer and day, without that of the requests with these lease ids."""

_T = TypeVar("_T")
log = logging.getLogger("penstock.quota")


class Server(Protocol):
    """Where the steps run. Raises `LedgerUnavailable` where there is no answer, `IntegrityError` for an error."""

    @property
    def is_up(self) -> bool: ...

    async def run(self, library: Library, step: str, *arguments: str | bytes | int) -> Any:
        """One step of the library on its first argument, which is its key."""
        ...

    async def ask(self, *command: str | bytes | int) -> Any:
        """One command."""
        ...

    async def close(self) -> None: ...


class ScriptedLedger:
    """A `Ledger` in functions of a server. Every method may raise `LedgerUnavailable`.

    An account is **opened** by the first request that meets it in this Redis: its budgets are filled from
    `history`, in one step, and only then is anything admitted. `epoch` is the one that
    was last remembered (None: never): if Redis holds none now, it lost its memory, and every bucket restarts full.
    `remember` is given each new epoch before anything is admitted in it, to be kept in durable storage.

    What ran when the memory was lost is told again by the gateways that run it: each keeps what it has admitted,
    `recover` (to be called often) notices the loss, and for `recovery_ms` after it nothing else is admitted
    (`LedgerUnavailable`). So budgets and concurrency are exact again; a gateway that could not tell in time has its
    leases expired. What a gateway admitted by itself (`hold_alone`) is told in the same way.

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
        self._prefix = f"{prefix}:{format_name()}"
        self._clock = clock
        self._history = history
        self._library = load_library(lease_ms, audit)
        self._epochs = Epochs(self._ask_epoch, epoch, remember)
        self._nonces = map(f"{secrets.token_hex(8)}-{{}}".format, itertools.count())
        self._opening: dict[str, asyncio.Task[None]] = {}
        self._recovery_ms = recovery_ms
        self._held = HeldLeases(lease_ms / 1000)
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
        if reply[0] != b"refused" and reply[8] == b"o":
            self._held.add(account, lease_id, reply[5], int(reply[4]), int(reply[7]), reply[6].decode())
        return decision(lease_id, account, layers, encoded, reply)

    async def settle(self, lease_id: str, account: str, tokens: int) -> bool:
        require_count(tokens)
        self._held.end(account, lease_id, tokens)
        reply = await self._run("finish", account, lease_id, tokens, "settled")
        is_ended = bool(reply == 1)
        if isinstance(reply, bytes):  # no lease that this memory knows: it was admitted in another one, or nowhere
            lost = self._held.forgotten(account, [lease_id], reply.decode())
            if lost:
                await self._adopt(account, lost, "settled")
                await self._run("finish", account, lease_id, tokens, "settled")  # `recover` may have been first
            is_ended = bool(lost)
        self._held.drop(account, lease_id)
        return is_ended

    async def release(self, lease_id: str, account: str) -> bool:
        reply = await self._run("finish", account, lease_id, 0, "released")
        self._held.drop(account, lease_id)
        return bool(reply == 1)

    async def renew(self, account: str, used_by_lease: Mapping[str, int]) -> frozenset[str]:
        for used in used_by_lease.values():
            require_count(used)
        self._held.touch(account, used_by_lease)
        gone: set[str] = set()
        for chunk in _chunks(list(used_by_lease.items()), RENEWALS_PER_CALL) or [[]]:
            epoch, *ids = await self._run("renew", account, *(part for report in chunk for part in report))
            missing = {lease_id.decode() for lease_id in ids}
            lost = self._held.forgotten(account, missing, epoch.decode())
            gone |= missing - lost.keys()
            gone |= await self._adopt(account, lost, "open")
        return frozenset(gone)

    async def peek(self, account: str, layers: Collection[Layer]) -> Remaining:
        encoded = encode(tuple(layers))
        now, used = await self._open_and_run("peek", account, encoded.text)
        return remaining(encoded, used, int(now))

    async def restore(self, account: str, level: Level, name: str, day: date, requests: int, tokens: int) -> bool:
        one = rows([PastUsage(level, name, day, requests, tokens)])
        return bool(await self._open_and_run("restore", account, one))

    async def usage(self, account: str) -> AccountUsage:
        return usage(account, await self._open_and_run("usage", account))

    async def check_integrity(self) -> None:
        """Looks at every account: it goes through all keys of the database."""
        cursor = b"0"
        while True:
            cursor, keys = await self._link.ask("SCAN", cursor, "MATCH", f"{self._prefix}:{{*}}:e", "COUNT", 10_000)
            for key in keys:
                if wrong := await self._link.run(self._library, "integrity", key, self._now(), ""):
                    raise IntegrityError(f"{key.decode()}: {wrong[0].decode()}")
            if cursor == b"0":
                return

    async def close(self) -> None:
        await self._link.close()

    # -- what this gateway holds ---------------------------------------------------------------------------

    def holding(self, account: str, lease_id: str) -> HeldLease | None:
        """A lease that was admitted here, by Redis or alone, and whose end Redis does not know yet."""
        return self._held.get(account, lease_id)

    def running(self) -> Iterable[tuple[str, str, HeldLease]]:
        """Account, lease id and lease of what was admitted here and runs."""
        return self._held.running()

    def touch(self, account: str, lease_ids: Iterable[str]) -> None:
        """This gateway runs them still."""
        self._held.touch(account, lease_ids)

    def hold_alone(self, account: str, lease_id: str, layers: Collection[Layer], tokens: int) -> None:
        """This gateway admitted it by itself: Redis is told of it when it answers, and of its end."""
        now_ms = round(1000 * datetime.now(UTC).timestamp())
        self._held.add(account, lease_id, encode(tuple(layers)).text, tokens, now_ms, ALONE)

    def end_alone(self, account: str, lease_id: str, tokens: int | None) -> None:
        """It has ended, before Redis was told; None: it is as if it had never been."""
        if tokens is None:
            self._held.drop(account, lease_id)
        else:
            self._held.end(account, lease_id, tokens)

    # -- memories ----------------------------------------------------------------------------------------

    async def epoch(self) -> str | None:
        """The one kept in Redis. None: Redis is new, or has lost its memory."""
        value = await self._link.ask("GET", self._epoch_key)
        return None if value is None else value.split()[0].decode()

    @property
    def _epoch_key(self) -> str:
        return f"{self._prefix}:epoch"

    async def _ask_epoch(self, fresh: str, is_remembered: str) -> bytes:
        value = await self._link.run(self._library, "epoch", self._epoch_key, self._now(), fresh, is_remembered)
        return bytes(value)

    async def recover(self) -> None:
        """Tell Redis of the leases that it does not know; open their accounts once every gateway has had time to.

        Raises LedgerUnavailable while Redis gives no answer, or is still being told.
        """
        epoch = await self._epochs.learn()
        for account, leases in self._held.forgotten_by_account(epoch.name).items():
            await self._apart(account, self._tell(account, leases, epoch.name))
        if epoch.is_young(self._recovery_ms):
            raise LedgerUnavailable("Redis has lost its memory and is being told what runs")
        for account in sorted(self._unopened):
            await self._apart(account, self._open_told(account))

    async def _apart(self, account: str, work: Awaitable[None]) -> None:
        """What is wrong with one account is not the others' affair."""
        try:
            await work
        except LedgerUnavailable as error:
            if not self.is_up:
                raise
            log.debug("account %s waits to be recovered: %s", account, error)
        except Exception:
            log.exception("account %s can't be recovered", account)

    async def _tell(self, account: str, leases: Mapping[str, HeldLease], epoch: str) -> None:
        late = await self._adopt(account, leases, "open")
        self._held.belong(account, leases.keys() - late, epoch)

    async def _open_told(self, account: str) -> None:
        await self._open_and_run("peek", account, b"[]")
        self._unopened.discard(account)

    async def _adopt(self, account: str, leases: Mapping[str, HeldLease], state: str) -> frozenset[str]:
        """Answers those that come too late. What was admitted alone never does: it is new to every memory."""
        late: set[str] = set()
        for is_alone in (False, True):
            ids = [lease_id for lease_id, held in leases.items() if (held.epoch == ALONE) is is_alone]
            for chunk in _chunks(ids, TOLD_PER_CALL):
                self._unopened.add(account)
                told = [part for lease_id in chunk for part in (lease_id, *leases[lease_id].told())]
                patience = MAX_COUNT if is_alone else self._recovery_ms
                reply = await self._run("adopt", account, patience, state, *told)
                late.update(lease_id.decode() for lease_id in reply)
        for lease_id in leases:  # released meanwhile, when nothing was known of it
            if self._held.get(account, lease_id) is None:
                await self._run("finish", account, lease_id, 0, "released")
        return frozenset(late)

    async def _open_and_run(self, step: str, account: str, *arguments: str | bytes | int) -> Any:
        for _ in range(3):
            reply = await self._run(step, account, *arguments)
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

        The step that found the account unopened left `nonce` in its marker. The epoch is asked for after
        that, and the account is opened only while `nonce` still stands there: so the memory that it is opened
        in is the one whose epoch was seen, or no memory was lost in between.
        """
        epoch = await self._epochs.learn()
        if epoch.is_young(self._recovery_ms):
            raise LedgerUnavailable("Redis has lost its memory and is being told what runs")
        known = [lease_id.decode() for lease_id in await self._run("known", account)]
        past = by_layer(await self._past(account, known), datetime.fromtimestamp(epoch.now_ms / 1000, UTC).date())
        *first, last = _chunks(past, ROWS_PER_CALL) or [[]]
        for chunk in first:
            await self._run("restore", account, rows(chunk), "more", nonce=nonce)
        await self._run("restore", account, rows(last), "open", epoch.lost_ms, epoch.name, nonce=nonce)

    async def _past(self, account: str, known: Collection[str]) -> Iterable[PastUsage]:
        if self._history is None:
            return ()
        try:
            async with asyncio.timeout(OPEN_TIMEOUT):
                return await self._history(account, known)
        except Exception as error:  # whatever it is: nobody knows what the account has spent
            reason = str(error) or type(error).__name__
            raise LedgerUnavailable(f"the durable usage of account {account!r} can't be read: {reason}") from error

    # -- steps -------------------------------------------------------------------------------------------

    async def _run(self, step: str, account: str, *arguments: str | bytes | int, nonce: str = "") -> Any:
        key = f"{self._prefix}:{{{_tag(account)}}}:e"
        return await self._link.run(self._library, step, key, self._now(), nonce or next(self._nonces), *arguments)

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


def _chunks(items: list[_T], size: int) -> list[list[_T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _tag(account: str) -> str:
    """The account as a hash tag: never empty, no brace inside."""
    return account.replace("%", "%25").replace("{", "%7B").replace("}", "%7D") or "%"
