"""What only the shared ledger has: scripts, keys, expiry, and a database that others may write to."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import date
from importlib import resources
from typing import TYPE_CHECKING

import pytest
from msgspec import msgpack

from quota.encoding import CODES, decode, encode
from quota.ledger import LEASE_MS, MAX_COUNT, CostAboveLimit, IntegrityError, LedgerUnavailable
from quota.levels import Dimension, Layer, Level, Limits
from quota.meters import DAY_MS, MINUTE_MS
from quota.redis import RedisLedger
from tests.quota.digest import digest, keys_of

if TYPE_CHECKING:
    from tests.quota.conftest import Clock

A = "acme"
FULL = Limits(rpm=100, tpm=60_000, requests_per_day=100, tokens_per_day=1000, tokens_per_month=5000, concurrent=10)
LAYERS = (Layer(Level.ACCOUNT, "", FULL), Layer(Level.KEY, "k1", FULL))


@pytest.fixture
async def ledger(redis_url: str, prefix: str, clock: Clock) -> AsyncIterator[RedisLedger]:
    ledger = RedisLedger(f"{redis_url}/1", prefix=prefix, clock=clock, audit=True, timeout=5)
    await ledger._link.ask("FLUSHDB")
    yield ledger
    await ledger.close()


async def a_life(ledger: RedisLedger, clock: Clock, account: str = A) -> None:
    """Some of every step."""
    await ledger.restore(account, Level.ACCOUNT, "", date(2025, 3, 1), 1, 10)
    for n in range(6):
        await ledger.reserve(f"r{n}", account, LAYERS, 20)
    await ledger.renew(account, {"r0": 3, "r1": 4})
    await ledger.settle("r2", account, 7)
    await ledger.release("r3", account)
    clock.advance(LEASE_MS)
    await ledger.peek(account, LAYERS)
    await ledger.reserve("r9", account, LAYERS, 20)


# -- the server ----------------------------------------------------------------------------------------------


async def test_functions_are_loaded_again_when_redis_forgot_them(ledger: RedisLedger) -> None:
    for n in range(3):
        assert (await ledger.reserve(f"r{n}", A, LAYERS, 1)).admitted
        await ledger._link.ask("FUNCTION", "FLUSH")
        assert await ledger.settle(f"r{n}", A, 1)
        await ledger._link.ask("FUNCTION", "FLUSH")


async def test_without_a_test_clock_the_time_is_the_servers(redis_url: str, prefix: str) -> None:
    ledger = RedisLedger(redis_url, prefix=prefix)
    decision = await ledger.reserve("r1", A, LAYERS, 1)
    seconds, micros = await ledger._link.ask("TIME")
    now = int(seconds) * 1000 + int(micros) // 1000
    assert decision.reservation is not None
    assert now - 60_000 < decision.reservation.expires_at - LEASE_MS <= now
    await ledger.close()


def test_the_contract_does_not_need_redis() -> None:
    code = "import quota, quota.ledger, quota.memory, quota.degraded, sys; assert 'redis' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_scripts_are_short() -> None:
    for script in (resources.files("quota") / "scripts").iterdir():
        assert len(script.read_text().splitlines()) <= 100, script.name


async def test_a_server_that_evicts_is_refused(ledger: RedisLedger) -> None:
    await ledger.check_server()
    await ledger._link.ask("CONFIG", "SET", "maxmemory", "1gb", "maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(ValueError, match="noeviction"):
            await ledger.check_server()
    finally:
        await ledger._link.ask("CONFIG", "SET", "maxmemory", "0", "maxmemory-policy", "noeviction")


async def test_a_full_server_changes_nothing_and_counts_as_away(ledger: RedisLedger) -> None:
    await ledger.reserve("r1", A, LAYERS, 20)
    before = await digest(ledger)
    await ledger._link.ask("CONFIG", "SET", "maxmemory", "1")
    try:
        with pytest.raises(LedgerUnavailable):
            await ledger.reserve("r2", A, LAYERS, 20)
        with pytest.raises(LedgerUnavailable):
            await ledger.settle("r1", A, 5)
    finally:
        await ledger._link.ask("CONFIG", "SET", "maxmemory", "0")
    assert await digest(ledger) == before
    assert await ledger.settle("r1", A, 5)


# -- keys ----------------------------------------------------------------------------------------------------


def slot(key: bytes) -> int:
    """Redis Cluster's: CRC16 (XModem) of the hash tag, modulo 16384."""
    start = key.find(b"{")
    end = key.find(b"}", start + 1)
    tag = key[start + 1 : end] if start >= 0 and end > start + 1 else key
    crc = 0
    for byte in tag:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
    return crc % 16384


@pytest.mark.parametrize("account", [A, "", "{}", "a}b{c", "}x", "%7D", "ünï"])
async def test_all_keys_of_an_account_share_one_slot(ledger: RedisLedger, clock: Clock, account: str) -> None:
    assert slot(b"123456789") == 0x31C3 % 16384
    await a_life(ledger, clock, account)
    keys = [key for key in await keys_of(ledger) if not key.endswith(b":epoch")]
    assert len(keys) >= 8
    assert len({slot(key) for key in keys}) == 1


async def test_accounts_with_odd_names_are_counted_apart(ledger: RedisLedger) -> None:
    layers = (Layer(Level.ACCOUNT, "", Limits(rpm=1)),)
    for account in ("", "%", "{", "}", "{}", "%7B", "a", "a}", "a\0", "a\n", "ä"):
        assert (await ledger.reserve("r1", account, layers, 1)).admitted, account


async def test_every_key_of_an_account_expires_when_idle(ledger: RedisLedger, clock: Clock) -> None:
    await a_life(ledger, clock)
    for key in await keys_of(ledger):
        left = await ledger._link.ask("PTTL", key)
        assert (left == -1) == key.endswith(b":epoch")


async def test_budgets_and_open_leases_outlive_a_month_of_silence(ledger: RedisLedger) -> None:
    await ledger.reserve("r1", A, LAYERS, 10)
    month = 31 * 86_400_000 + 3_600_000
    for suffix in ("e", "c", "l", "o"):
        assert await ledger._link.ask("PTTL", f"{ledger._prefix}:{{{A}}}:{suffix}") > month
    await ledger.settle("r1", A, 1)
    assert await ledger._link.ask("PTTL", f"{ledger._prefix}:{{{A}}}:l") <= 11 * LEASE_MS


async def test_what_is_kept_of_leases_expires_together(ledger: RedisLedger, clock: Clock) -> None:
    """Else a lease is left that no queue tells to forget."""

    async def lifetimes() -> set[bool]:
        left = [await ledger._link.ask("PTTL", f"{ledger._prefix}:{{{A}}}:{suffix}") for suffix in "lugof"]
        return {ms > 11 * LEASE_MS for ms in left if ms != -2}

    for n in range(3):
        await ledger.reserve(f"r{n}", A, LAYERS, 20)
        assert await lifetimes() == {True}
        await ledger.settle(f"r{n}", A, 20)
        assert await lifetimes() == {False}
    await ledger.reserve("open", A, LAYERS, 20)
    await ledger.renew(A, {"open": 3})
    await ledger.release("open", A)
    assert await lifetimes() == {False}
    await ledger.reserve("dead", A, LAYERS, 20)
    await ledger.renew(A, {"dead": 3})
    assert await lifetimes() == {True}
    clock.advance(LEASE_MS)
    await ledger.peek(A, LAYERS)
    assert await lifetimes() == {False}


async def test_an_account_with_a_new_key_for_each_request_keeps_few_counters(ledger: RedisLedger, clock: Clock) -> None:
    """Of this month and the one before, whose budgets are still told."""
    for n in range(1200):
        await ledger.reserve(f"r{n}", A, [Layer(Level.KEY, f"k{n}", Limits(rpm=60, tpm=60))], 1)
        await ledger.settle(f"r{n}", A, 1)
        clock.advance(7_200_000)
    assert await ledger._link.ask("HLEN", f"{ledger._prefix}:{{{A}}}:c") < 800
    assert await ledger._link.ask("HLEN", f"{ledger._prefix}:{{{A}}}:l") < 20


# -- somebody else's data ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["e", "c", "l", "o", "f", "u", "a", "d20162", "m662", "r662"])
async def test_a_key_of_another_type_is_a_clear_error_and_nothing_is_written(
    ledger: RedisLedger, clock: Clock, suffix: str
) -> None:
    await a_life(ledger, clock)
    key = f"{ledger._prefix}:{{{A}}}:{suffix}"
    await ledger._link.ask("DEL", key, f"{ledger._prefix}:{{{A}}}:c")  # without counters those of old periods are read
    await ledger._link.ask("SADD", key, "not ours")
    calls = (
        lambda: ledger.reserve("new", A, LAYERS, 20),
        lambda: ledger.settle("r9", A, 7),
        lambda: ledger.restore(A, Level.ACCOUNT, "", date(2025, 3, 15), 1, 10),
        lambda: ledger.renew(A, {"r9": 5}),
    )
    failures = []
    for call in calls:
        before = await digest(ledger)
        answer = (await asyncio.gather(call(), return_exceptions=True))[0]
        if isinstance(answer, BaseException):
            failures.append(answer)
            assert await digest(ledger) == before
    assert failures
    assert all(isinstance(failure, IntegrityError) and A in str(failure) for failure in failures)


async def test_a_value_that_is_no_number_is_a_clear_error(ledger: RedisLedger) -> None:
    await ledger.reserve("r1", A, LAYERS, 20)
    key = f"{ledger._prefix}:{{{A}}}:c"
    layer, packed = (await ledger._link.ask("HGETALL", key))[:2]
    counts = msgpack.decode(packed)
    for place, value in itertools.product(range(len(counts)), (float("nan"), float("inf"), 12.5, 2**53 + 2, "x", None)):
        wrong = [value if n == place else count for n, count in enumerate(counts)]
        await ledger._link.ask("HSET", key, layer, msgpack.encode(wrong))
        before = await digest(ledger)
        with pytest.raises(IntegrityError, match=r"exact integer|arithmetic on|not a record"):
            await ledger.reserve("r2", A, LAYERS, 20)
        assert await digest(ledger) == before
    for junk in (b"", b"x", msgpack.encode(counts[:5])):
        await ledger._link.ask("HSET", key, layer, junk)
        with pytest.raises(IntegrityError):
            await ledger.reserve("r2", A, LAYERS, 20)
    await ledger._link.ask("HSET", key, layer, packed)
    assert (await ledger.reserve("r2", A, LAYERS, 20)).admitted


async def test_counts_of_periods_that_are_over_are_still_corrected(ledger: RedisLedger, clock: Clock) -> None:
    """A request may end on another day than it began; and a clock may be set back."""
    clock.now = (clock.now // DAY_MS + 1) * DAY_MS - 1000
    yesterday = clock.now // DAY_MS
    await ledger.reserve("r1", A, LAYERS, 500)
    clock.advance(2000)
    await ledger.reserve("r2", A, LAYERS, 100)
    await ledger.settle("r1", A, 30)

    async def tokens() -> dict[int, int]:
        counters = (await ledger.usage(A)).counters
        daily = [c for c in counters if c.level is Level.KEY and c.dimension is Dimension.TOKENS_PER_DAY]
        return {counter.period - yesterday: counter.used for counter in daily}

    assert await tokens() == {0: 30, 1: 100}
    clock.advance(-2000)
    await ledger.reserve("r3", A, LAYERS, 7)
    assert await tokens() == {0: 37, 1: 100}
    clock.advance(2000)
    await ledger._link.ask("HDEL", f"{ledger._prefix}:{{{A}}}:c", "key:k1")  # as if it had been swept
    await ledger.settle("r3", A, 5)
    assert await tokens() == {0: 35}
    clock.advance(3 * DAY_MS)
    assert await tokens() == {}
    await ledger.check_integrity()


async def test_a_clock_that_was_ahead_forgets_no_budget(ledger: RedisLedger, clock: Clock) -> None:
    layers = (Layer(Level.ACCOUNT, "", Limits(tokens_per_day=100)),)
    await ledger.reserve("r1", A, layers, 100)
    await ledger.settle("r1", A, 100)
    clock.advance(40 * DAY_MS)
    await ledger.reserve("r2", A, layers, 1)
    clock.advance(-40 * DAY_MS)
    assert not (await ledger.reserve("r3", A, layers, 50)).admitted
    await ledger.check_integrity()


async def test_a_turn_of_the_month_is_read_in_a_few_commands(ledger: RedisLedger, clock: Clock) -> None:
    layers = [Layer(Level.FEATURE, f"f{n}", Limits()) for n in range(50)]
    await ledger.reserve("r1", A, layers, 1)
    clock.advance(31 * DAY_MS)
    await ledger._link.ask("CONFIG", "RESETSTAT")
    await ledger.reserve("r2", A, layers, 1)
    info = (await ledger._link.ask("INFO", "commandstats")).decode()
    (calls,) = [line for line in info.split() if line.startswith("cmdstat_hmget:")]
    assert int(calls.split("calls=")[1].split(",")[0]) < 20


async def test_keys_that_are_not_used_any_more_are_forgotten(ledger: RedisLedger, clock: Clock) -> None:
    for n in range(300):
        await ledger.reserve(f"r{n}", A, [Layer(Level.KEY, f"k{n}", Limits(rpm=60))], 1)
        await ledger.settle(f"r{n}", A, 1)
    clock.advance(32 * DAY_MS)
    for n in range(20):
        clock.advance(600_000)
        await ledger.reserve(f"s{n}", A, [Layer(Level.KEY, "k1", Limits(rpm=60))], 1)
        await ledger.settle(f"s{n}", A, 1)
    assert await ledger._link.ask("HLEN", f"{ledger._prefix}:{{{A}}}:c") < 100


async def test_a_huge_request_past_a_shadow_limit_is_reported(ledger: RedisLedger) -> None:
    layers = (Layer(Level.ACCOUNT, "", Limits(tpm=100, shadow=frozenset({Dimension.TPM}))),)
    decision = await ledger.reserve("r1", A, layers, 2 * 10**14)
    assert [refusal.dimension for refusal in decision.shadowed] == [Dimension.TPM]


async def test_functions_of_another_format_are_another_redis(
    ledger: RedisLedger, monkeypatch: pytest.MonkeyPatch, redis_url: str, prefix: str, clock: Clock
) -> None:
    """Else an upgrade would misread what older gateways left, and count beside them."""
    await ledger.reserve("r1", A, LAYERS, 20)
    monkeypatch.setattr("quota.lua.FORMAT", 3)
    newer = RedisLedger(f"{redis_url}/1", prefix=prefix, clock=clock)
    assert not (await newer.usage(A)).leases
    assert await newer.epoch() != await ledger.epoch()
    await newer.close()


# -- values --------------------------------------------------------------------------------------------------


async def test_largest_values_are_exact(ledger: RedisLedger, clock: Clock) -> None:
    limits = Limits(**{dimension.value: dimension.max_limit for dimension in Dimension})
    layers = (Layer(Level.ACCOUNT, "", limits),)
    tokens = Dimension.TPM.max_limit - 1
    assert (await ledger.reserve("r1", A, layers, tokens)).admitted
    used = {c.dimension: c.used for c in (await ledger.usage(A)).counters}
    assert used[Dimension.TPM] == tokens * MINUTE_MS
    assert (await ledger.reserve("r2", A, layers, 1)).admitted
    assert not (await ledger.reserve("r3", A, layers, 1)).admitted
    clock.advance(1)
    assert (await ledger.peek(A, layers)).remaining_tokens == (tokens + 1) // MINUTE_MS
    await ledger.settle("r1", A, MAX_COUNT)
    used = {c.dimension: c.used for c in (await ledger.usage(A)).counters}
    assert used[Dimension.TOKENS_PER_DAY] == MAX_COUNT + 1
    assert used[Dimension.TPM] == (tokens + 1) * MINUTE_MS
    await ledger.check_integrity()


@pytest.mark.parametrize("tokens", [-1, MAX_COUNT + 1, 2**63, 10**30])
async def test_counts_that_are_not_exact_are_refused(ledger: RedisLedger, tokens: int) -> None:
    with pytest.raises(ValueError, match="a count"):
        await ledger.reserve("r1", A, LAYERS, tokens)
    with pytest.raises(ValueError, match="a count"):
        await ledger.settle("r1", A, tokens)
    with pytest.raises(ValueError, match="a count"):
        await ledger.renew(A, {"r1": tokens})
    with pytest.raises(ValueError, match="a count"):
        await ledger.restore(A, Level.ACCOUNT, "", date(2025, 3, 15), 1, tokens)
    with pytest.raises(ValueError, match="within 0"):
        await ledger.reserve("r1", A, [Layer(Level.ACCOUNT, "", Limits(rpm=10**11 + 1))], 1)


def test_layers_survive_their_encoding() -> None:
    layers = (*LAYERS, Layer(Level.MODEL, 'm@1 "\\:{}', Limits(rpm=0)), Layer(Level.FEATURE, "ü\0", Limits()))
    assert decode(encode(layers).text) == layers
    assert len(set(CODES.values())) == len(Dimension)


def test_a_fault_is_found_where_the_pure_core_finds_it() -> None:
    above = encode((Layer(Level.KEY, "k", Limits(tpm=9)),)).fault(10)
    assert isinstance(above, CostAboveLimit)
    assert encode(LAYERS).fault(10) is None
    assert "twice" in str(encode((*LAYERS, LAYERS[0])).fault(10))


# -- stopped for too long ------------------------------------------------------------------------------------


async def test_a_gateway_stopped_past_its_lease_breaks_no_limit(ledger: RedisLedger, clock: Clock) -> None:
    layers = (Layer(Level.ACCOUNT, "", Limits(concurrent=2)),)
    for n in range(50):
        stopped, others = f"s{n}", (f"a{n}", f"b{n}")
        assert (await ledger.reserve(stopped, A, layers, 5)).admitted
        clock.advance(LEASE_MS)
        for other in others:
            assert (await ledger.reserve(other, A, layers, 5)).admitted
        assert await ledger.renew(A, {stopped: 3}) == {stopped}
        assert not (await ledger.reserve(stopped, A, layers, 5)).admitted
        for lease_id in (*others, stopped):
            assert await ledger.settle(lease_id, A, 4)
