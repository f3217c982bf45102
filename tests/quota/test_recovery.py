"""Redis loses its memory while requests run: they are told again, and nothing is spent or held twice."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections import Counter as Tally
from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from quota.ledger import LedgerUnavailable, PastUsage
from quota.levels import Dimension, Layer, Level, Limits
from quota.redis import RedisLedger
from tests.quota.redis_server import WHY_NOT, RedisServer, is_installed

A = "acme"
RECOVERY_MS = 300
LAYERS = (Layer(Level.ACCOUNT, "", Limits(tokens_per_day=1000, requests_per_day=100, concurrent=4)),)


class World:
    """One Redis that loses its memory, gateways on it, and the durable usage of what has ended."""

    def __init__(self, folder: Path) -> None:
        self.server = RedisServer(folder)
        self.server.start()
        self.epoch: str | None = None
        self.rows: dict[str, int] = {}  # tokens by lease
        self.is_broken = False
        self.ledgers: list[RedisLedger] = []

    def gateway(self, lease_ms: int = 30_000) -> RedisLedger:
        ledger = RedisLedger(
            self.server.url,
            history=self.history,
            epoch=self.epoch,
            remember=self.remember,
            timeout=2,
            lease_ms=lease_ms,
            recovery_ms=RECOVERY_MS,
        )
        self.ledgers.append(ledger)
        return ledger

    async def history(self, account: str, without: Collection[str]) -> list[PastUsage]:
        if self.is_broken:
            raise OSError("the database is away")
        used = [tokens for lease_id, tokens in self.rows.items() if lease_id not in without]
        return [PastUsage(Level.ACCOUNT, "", datetime.now(UTC).date(), len(used), sum(used))] if used else []

    async def remember(self, epoch: str) -> None:
        self.epoch = epoch

    def lose_memory(self) -> None:
        self.server.kill()
        self.server.start()

    async def end(self, ledger: RedisLedger, lease_id: str, tokens: int) -> None:
        assert await ledger.settle(lease_id, A, tokens)
        self.rows[lease_id] = tokens

    async def recover(self) -> None:
        """As every gateway's `watch` does, until the accounts are open."""
        while True:
            outcomes = await asyncio.gather(*(ledger.recover() for ledger in self.ledgers), return_exceptions=True)
            if all(outcome is None for outcome in outcomes):
                return
            await asyncio.sleep(0.05)

    async def used(self) -> dict[Dimension, int]:
        return {c.dimension: c.used for c in (await self.ledgers[0].usage(A)).counters}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    if not is_installed():
        pytest.skip(WHY_NOT)
    world = World(tmp_path)
    yield world
    for ledger in world.ledgers:
        await ledger.close()
    world.server.kill()


async def reserve(ledger: RedisLedger, lease_id: str, tokens: int) -> bool:
    return (await ledger.reserve(lease_id, A, LAYERS, tokens)).admitted


async def test_what_runs_is_counted_again(world: World) -> None:
    one, two = world.gateway(), world.gateway()
    assert await reserve(one, "ended", 300)
    await world.end(one, "ended", 200)
    assert await reserve(one, "r1", 300)
    assert await reserve(two, "r2", 300)
    world.lose_memory()
    await world.recover()
    assert await world.used() == {
        Dimension.TOKENS_PER_DAY: 800,
        Dimension.TOKENS_PER_MONTH: 800,
        Dimension.REQUESTS_PER_DAY: 3,
        Dimension.CONCURRENT: 2,
    }
    assert not await reserve(one, "r3", 201)
    assert await one.renew(A, {"r1": 5}) == frozenset()
    await world.end(one, "r1", 250)
    await world.end(two, "r2", 10)
    assert await world.used() == {
        Dimension.TOKENS_PER_DAY: 460,
        Dimension.TOKENS_PER_MONTH: 460,
        Dimension.REQUESTS_PER_DAY: 3,
    }
    await one.check_integrity()


async def test_nothing_is_admitted_before_every_gateway_could_tell(world: World) -> None:
    one, two = world.gateway(), world.gateway()
    for n in range(4):
        assert await reserve(two, f"r{n}", 10)
    await world.recover()
    world.lose_memory()
    with pytest.raises(LedgerUnavailable, match="lost its memory"):
        await reserve(one, "s1", 10)
    await world.recover()
    assert not await reserve(one, "s2", 10), "four run on the other gateway"


@pytest.mark.parametrize("is_told_first", [False, True])
async def test_what_ends_meanwhile_is_charged_once(world: World, is_told_first: bool) -> None:
    one = world.gateway()
    assert await reserve(one, "r1", 300)
    assert await reserve(one, "r2", 300)
    world.lose_memory()
    if is_told_first:
        with pytest.raises(LedgerUnavailable):
            await one.recover()
    await world.end(one, "r1", 120)
    assert not await one.settle("r1", A, 120), "once"
    await one.release("r2", A)
    await world.recover()
    assert await world.used() == {
        Dimension.TOKENS_PER_DAY: 120,
        Dimension.TOKENS_PER_MONTH: 120,
        Dimension.REQUESTS_PER_DAY: 1,
    }


async def test_what_ended_while_redis_was_away_comes_from_durable_usage(world: World) -> None:
    one = world.gateway()
    assert await reserve(one, "r1", 300)
    world.server.kill()
    with pytest.raises(LedgerUnavailable):
        await one.settle("r1", A, 120)
    world.rows["r1"] = 120
    world.server.start()
    assert await one.settle("r1", A, 120), "handed in later"
    await world.recover()
    assert (await world.used())[Dimension.TOKENS_PER_DAY] == 120


async def test_who_comes_too_late_is_admitted_again_or_not(world: World) -> None:
    """A gateway that was stopped all the while can't break the concurrency of those that went on."""
    one, stopped = world.gateway(), world.gateway()
    for n in range(3):
        assert await reserve(stopped, f"old{n}", 10)
    world.lose_memory()
    world.ledgers.remove(stopped)
    await wait_until_open(one)
    for n in range(3):
        assert await reserve(one, f"new{n}", 10)
    await stopped.recover()
    assert (await world.used())[Dimension.CONCURRENT] == 3
    assert await stopped.renew(A, {f"old{n}": 1 for n in range(3)}) == {f"old{n}" for n in range(3)}
    assert [await reserve(stopped, f"old{n}", 10) for n in range(3)] == [True, False, False]
    assert await stopped.settle("old1", A, 7), "it was used, and is charged"
    assert (await world.used())[Dimension.TOKENS_PER_DAY] == 3 * 10 + 10 + 7
    await stopped.close()


async def wait_until_open(ledger: RedisLedger) -> None:
    for n in itertools.count():
        try:
            if await reserve(ledger, f"probe{n}", 1):
                await ledger.release(f"probe{n}", A)
            return
        except LedgerUnavailable:
            await asyncio.sleep(0.05)


async def test_what_was_restored_is_not_charged_again_by_a_late_ending(world: World) -> None:
    """A gateway that was cut off tells how its request ended when the account has long been open again."""
    one, cut_off = world.gateway(), world.gateway()
    assert await reserve(cut_off, "r1", 300)
    cut_off._held.end(A, "r1", 120)
    held = cut_off._held.get(A, "r1")
    assert held is not None
    cut_off._held._held[A, "r1"] = replace(held, ended=time.monotonic() - 10)  # its row has long been written
    world.rows["r1"] = 120
    world.lose_memory()
    world.ledgers.remove(cut_off)
    await wait_until_open(one)
    assert await cut_off.settle("r1", A, 120)
    assert (await world.used())[Dimension.TOKENS_PER_DAY] == 120
    await cut_off.close()


async def test_what_ended_while_the_database_was_away_is_charged_once(world: World) -> None:
    """However long the account could not be opened: what has ended in this memory is not restored besides."""
    one = world.gateway(lease_ms=200)
    assert await reserve(one, "r1", 300)
    world.lose_memory()
    world.is_broken = True
    for _ in range(3):
        with contextlib.suppress(LedgerUnavailable):
            await one.recover()
    await world.end(one, "r1", 120)
    for _ in range(8):  # two leases, and more than what an idle account's leases live for
        await asyncio.sleep(0.35)
        with contextlib.suppress(LedgerUnavailable):
            await one.recover()
    world.is_broken = False
    await world.recover()
    assert (await world.used())[Dimension.TOKENS_PER_DAY] == 120


async def test_an_account_with_many_layers_is_opened_in_parts(world: World) -> None:
    """Redis answers others between them."""
    day = datetime.now(UTC).date()
    layers = [PastUsage(Level.KEY, f"k{n}", day, 1, n) for n in range(1200)]
    older = [replace(row, day=day.replace(day=1 if day.day > 1 else 2), tokens=5) for row in layers] * 2

    async def history(account: str, without: Collection[str]) -> list[PastUsage]:
        return [*layers, *older]

    ledger = world.gateway()
    ledger._history = history
    asked: Tally[int] = Tally()
    run = ledger._run

    async def counted(script: str, account: str, *arguments: str | bytes | int, nonce: str = "") -> object:
        if script == "restore":
            asked[str(arguments[0]).count("key:")] += 1
        return await run(script, account, *arguments, nonce=nonce)

    ledger._run = counted  # type: ignore[method-assign]
    used = {(c.name, c.dimension): c.used for c in (await ledger.usage(A)).counters}
    assert used["k1199", Dimension.TOKENS_PER_DAY] == 1199
    assert used["k1199", Dimension.TOKENS_PER_MONTH] == 1199 + 10
    assert used["k0", Dimension.REQUESTS_PER_DAY] == 1
    assert asked == {500: 4, 400: 1}


async def test_a_database_that_hangs_holds_nobody_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quota.scripted.OPEN_TIMEOUT", 0.05)

    async def history(account: str, without: Collection[str]) -> list[PastUsage]:
        await asyncio.Event().wait()
        return []

    ledger = world.gateway()
    ledger._history = history
    with pytest.raises(LedgerUnavailable, match="TimeoutError"):
        await reserve(ledger, "r1", 1)


async def test_an_epoch_that_cannot_be_remembered_admits_nothing(world: World) -> None:
    async def broken(epoch: str) -> None:
        raise RuntimeError("no database")

    ledger = world.gateway()
    ledger._epochs._remember = broken
    with pytest.raises(LedgerUnavailable, match="epoch"):
        await reserve(ledger, "r1", 1)


async def test_what_is_released_while_it_is_told_holds_nothing(world: World) -> None:
    one = world.gateway()
    assert await reserve(one, "r1", 10)
    world.lose_memory()
    run = one._run

    async def released_meanwhile(script: str, account: str, *arguments: str | bytes | int, nonce: str = "") -> object:
        if script == "adopt":
            one._run = run  # type: ignore[method-assign]
            assert not await one.release("r1", A)
        return await run(script, account, *arguments, nonce=nonce)

    one._run = released_meanwhile  # type: ignore[method-assign]
    assert await one.renew(A, {"r1": 1}) == frozenset()
    await world.recover()
    assert await world.used() == {}


async def test_a_budget_is_never_overspent_however_often_memory_is_lost(world: World) -> None:
    rng = random.Random(7)
    gateways = [world.gateway() for _ in range(3)]
    running: dict[str, tuple[RedisLedger, int]] = {}
    watching = [asyncio.create_task(watch(ledger)) for ledger in gateways]
    outcomes: Tally[str] = Tally()
    numbers = itertools.count()
    layers = (Layer(Level.ACCOUNT, "", Limits(tokens_per_day=3000, concurrent=6)),)
    try:
        for step in range(400):
            if step % 80 == 40:
                world.lose_memory()
            ledger = rng.choice(gateways)
            if running and rng.random() < 0.4:
                lease_id = rng.choice(list(running))
                owner, tokens = running.pop(lease_id)
                await world.end(owner, lease_id, rng.randrange(1, tokens + 1))
                continue
            lease_id, tokens = f"r{next(numbers)}", rng.randrange(2, 90)
            try:
                admitted = (await ledger.reserve(lease_id, A, layers, tokens)).admitted
            except LedgerUnavailable:
                outcomes["away"] += 1
                await asyncio.sleep(0.02)
                continue
            outcomes["admitted" if admitted else "refused"] += 1
            if admitted:
                running[lease_id] = ledger, tokens
            promised = sum(world.rows.values()) + sum(tokens for _, tokens in running.values())
            assert promised <= 3000
            assert len(running) <= 6
        assert min(outcomes[what] for what in ("admitted", "refused", "away")) > 5, outcomes
    finally:
        for task in watching:
            task.cancel()
    await world.recover()
    promised = sum(world.rows.values()) + sum(tokens for _, tokens in running.values())
    used = await world.used()
    assert used[Dimension.TOKENS_PER_DAY] == promised
    assert used.get(Dimension.CONCURRENT, 0) == len(running)


async def watch(ledger: RedisLedger) -> None:
    while True:
        with contextlib.suppress(LedgerUnavailable):
            await ledger.recover()
        await asyncio.sleep(0.02)
