"""A gateway's worth of admissions on a shared ledger, until it is killed.

python -m tests.faults.ledger.worker URL PREFIX
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import uuid

from quota.levels import Layer, Level, Limits
from quota.redis import RedisLedger

ACCOUNT = "acme"
LEASE_MS = 600
LAYERS = (
    Layer(Level.ACCOUNT, "", Limits(rpm=180_000, tpm=15_000_000, tokens_per_day=10**9, concurrent=12)),
    Layer(Level.KEY, "k1", Limits(rpm=150_000, concurrent=11)),
    Layer(Level.MODEL, "m", Limits(tpm=12_000_000, tokens_per_month=10**9)),
    Layer(Level.FEATURE, "tools", Limits(concurrent=10)),
)


async def request(ledger: RedisLedger, rng: random.Random) -> None:
    lease_id, tokens = uuid.UUID(int=rng.getrandbits(128)).hex, rng.randrange(1, 400)
    if not (await ledger.reserve(lease_id, ACCOUNT, LAYERS, tokens)).admitted:
        await asyncio.sleep(0.005)
        return
    end = rng.random()
    if end < 0.005:
        await asyncio.sleep(LEASE_MS / 3000)
        await ledger.renew(ACCOUNT, {lease_id: tokens // 2})
    if end < 0.9:
        await ledger.settle(lease_id, ACCOUNT, rng.randrange(tokens + 1))
    elif end < 0.999:
        await ledger.release(lease_id, ACCOUNT)
    # else: forgotten, as a gateway that crashed forgets it


async def main(url: str, prefix: str) -> None:
    os.nice(5)  # whoever replays the log must keep up with it
    rng = random.Random()
    ledger = RedisLedger(url, prefix=prefix, lease_ms=LEASE_MS, audit=True, timeout=5)

    async def client() -> None:
        while True:
            await request(ledger, rng)

    await asyncio.gather(*(client() for _ in range(4)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
