"""Endings that come twice, late and in any order, through several gateways."""

from __future__ import annotations

import asyncio
import random
from collections import Counter as Tally
from dataclasses import dataclass

from quota.ledger import LEASE_MS
from quota.levels import Dimension, Kind, Layer, Level, Limits, Unit
from quota.redis import RedisLedger
from tests.faults.ledger.replay import Replay
from tests.quota.conftest import Clock
from tests.scale import cut, publish

ROUNDS, CALLS = cut(1, 10), cut(3_000, 10_000)
AT_ONCE = 16
SPREAD_MS = 5 * LEASE_MS
HUGE = Limits(**{dimension.value: 10**9 for dimension in Dimension})
LAYERS = (
    Layer(Level.ACCOUNT, "", HUGE),
    Layer(Level.KEY, "k1", HUGE),
    Layer(Level.MODEL, "m", HUGE),
    Layer(Level.MODEL, "m@1", Limits(concurrent=10**6)),
    Layer(Level.FEATURE, "tools", HUGE),
)


@dataclass(frozen=True, slots=True)
class Ending:
    lease_id: str
    layers: tuple[Layer, ...]
    tokens: int | None  # None: released

    async def take(self, ledger: RedisLedger, account: str) -> bool:
        if self.tokens is None:
            return await ledger.release(self.lease_id, account)
        return await ledger.settle(self.lease_id, account, self.tokens)


class Books:
    """What every counter must come to: each lease's one ending that the ledger took."""

    def __init__(self) -> None:
        self.totals: Tally[tuple[Level, str, Dimension]] = Tally()
        self.ended: Tally[str] = Tally()

    def add(self, ending: Ending) -> None:
        self.ended[ending.lease_id] += 1
        if ending.tokens is None:
            return
        for layer in ending.layers:
            for dimension in Dimension:
                if dimension.kind is Kind.BUDGET:
                    amount = ending.tokens if dimension.unit is Unit.TOKENS else 1
                    self.totals[layer.level, layer.name, dimension] += amount


async def admit(ledger: RedisLedger, account: str, rng: random.Random, num_leases: int) -> list[Ending]:
    """Answers endings, several for each lease, that contradict each other."""
    endings = []
    for n in range(num_leases):
        layers = (LAYERS[0], *rng.sample(LAYERS[1:], rng.randrange(len(LAYERS))))
        assert (await ledger.reserve(f"r{n}", account, layers, rng.randrange(1, 1000))).admitted
        if rng.random() < 0.2:
            await ledger.renew(account, {f"r{n}": rng.randrange(1000)})
        endings += [Ending(f"r{n}", layers, rng.choice([None, *rng.sample(range(2000), 3)])) for _ in range(4)]
    rng.shuffle(endings)
    return endings


async def settle_a_crowd(gateways: list[RedisLedger], clock: Clock, account: str) -> int:
    """Answers how many counters are not the sum of the endings that were taken."""
    rng, books = random.Random(account), Books()
    endings = await admit(gateways[0], account, rng, CALLS // 4)
    for first in range(0, len(endings), AT_ONCE):
        clock.advance(rng.randrange(2 * SPREAD_MS * AT_ONCE // CALLS))
        chunk = endings[first : first + AT_ONCE]
        taken = await asyncio.gather(*(ending.take(rng.choice(gateways), account) for ending in chunk))
        for ending, was_taken in zip(chunk, taken, strict=True):
            if was_taken:
                books.add(ending)
    assert books.ended == {f"r{n}": 1 for n in range(CALLS // 4)}
    clock.advance(60_000)  # buckets are empty
    counters = (await gateways[0].usage(account)).counters
    return len(set(books.totals.items()) ^ {((c.level, c.name, c.dimension), c.used) for c in counters})


async def test_duplicate_late_and_out_of_order_settlements_sum_up(redis_url: str, prefix: str, clock: Clock) -> None:
    """Check 3: of a lease's endings one is taken, and every counter is the sum of those.

    All come within the time for which an expired lease is remembered, most of them after its expiry.
    """
    gateways = [RedisLedger(redis_url, prefix=prefix, clock=clock, audit=True, timeout=5) for _ in range(2)]
    wrong, replays = 0, [Replay() for _ in range(ROUNDS)]
    for n, replay in enumerate(replays):
        wrong += await settle_a_crowd(gateways, clock, f"a{n}")
        async for record in gateways[0].audit_log(f"a{n}"):
            replay.add(record)
    publish(3, "duplicate, late, out-of-order settlements", settlements=ROUNDS * CALLS, wrong_counters=wrong)
    assert wrong == 0
    assert all(replay.num_over == replay.num_wrong == 0 for replay in replays)
    assert all(replay.num_expired > CALLS // 40 for replay in replays), "many came late"
    for gateway in gateways:
        await gateway.check_integrity()
        await gateway.close()
