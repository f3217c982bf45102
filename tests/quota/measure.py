"""What the shared ledger costs, on a redis-server of its own: python -m tests.quota.measure

Server times are Redis's own (INFO latencystats), over many accounts, with one connection.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quota.levels import Layer, Level, Limits
from quota.redis import RedisLedger
from tests.quota.redis_server import RedisServer

CALLS = 20_000
ACCOUNTS = 50
LIMITS = Limits(tpm=10**9, requests_per_day=10**12, tokens_per_day=10**12, tokens_per_month=10**12, concurrent=10**6)


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one call: the server's time in microseconds, and how many a second and a second of this core's time."""

    p50_us: float
    p99_us: float
    mean_us: float
    a_second: float
    a_core_second: float

    def __str__(self) -> str:
        return (
            f"server p50 {self.p50_us} us, p99 {self.p99_us} us, mean {self.mean_us} us; "
            f"{self.a_second:.0f}/s one at a time, {self.a_core_second:.0f}/s a gateway core"
        )


def layers(num_counters: int) -> tuple[Layer, ...]:
    names = [Level.ACCOUNT, Level.KEY, Level.MODEL, Level.MODEL, *[Level.FEATURE] * 20]
    return tuple(Layer(level, f"name-{n}", LIMITS) for n, level in enumerate(names[: num_counters // 5]))


async def figures(ledger: RedisLedger, section: str, names: list[str]) -> list[float]:
    info = (await ledger._link.ask("INFO", section)).decode()
    found = dict(part.split("=") for line in info.split() if "fcall:" in line for part in line.split(":")[1].split(","))
    return [float(found[name]) for name in names]


async def phase(ledger: RedisLedger, what: str, calls: list[Any]) -> Cost:
    await ledger._link.ask("CONFIG", "RESETSTAT")
    start, cpu = time.perf_counter(), time.process_time()
    for call in calls:
        await call
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    p50, p99 = await figures(ledger, "latencystats", ["p50", "p99"])
    (mean,) = await figures(ledger, "commandstats", ["usec_per_call"])
    cost = Cost(p50, p99, mean, len(calls) / seconds, len(calls) / cpu)
    print(f"{what}: {cost}")
    return cost


async def measure(url: str, num_counters: int) -> Cost:
    """Answers what half an admission and its settlement cost."""
    ledger = RedisLedger(url, prefix=f"m{num_counters}", timeout=5)
    ours = layers(num_counters)
    for n in range(ACCOUNTS):
        await ledger.settle("x", f"a{n}", 1)
        await ledger.reserve("x", f"a{n}", ours, 1)
    ids = [(f"req-{n:024d}", f"a{n % ACCOUNTS}") for n in range(CALLS)]
    for first in range(0, CALLS, CALLS // 10):  # so that a few hundred leases are open, as on a busy day
        part = ids[first : first + CALLS // 10]
        if first == 0:
            await phase(ledger, f"admit,  {num_counters} counters", [ledger.reserve(i, a, ours, 500) for i, a in part])
            await phase(ledger, f"settle, {num_counters} counters", [ledger.settle(i, a, 300) for i, a in part])
    everything = [
        call for i, a in ids[CALLS // 10 :] for call in (ledger.reserve(i, a, ours, 500), ledger.settle(i, a, 300))
    ]
    cost = await phase(ledger, f"admit + settle, {num_counters} counters", everything)
    many = [asyncio.create_task(one(ledger, f"z{n}", f"a{n % ACCOUNTS}", ours)) for n in range(CALLS // 10)]
    start = time.perf_counter()
    await asyncio.gather(*many)
    rate = len(many) / (time.perf_counter() - start)
    print(f"admit + settle, {num_counters} counters: {rate:.0f} requests/s, 16 at a time")
    await ledger.close()
    return cost


async def one(ledger: RedisLedger, lease_id: str, account: str, ours: tuple[Layer, ...]) -> None:
    await ledger.reserve(lease_id, account, ours, 500)
    await ledger.settle(lease_id, account, 300)


async def memory(url: str, num_counters: int) -> None:
    """Of accounts that made one request each: with the day's counters, the finished lease and the markers."""
    ledger = RedisLedger(url, prefix=f"i{num_counters}", timeout=5, lease_ms=100)
    used = [await used_memory(ledger)]
    for n in range(2000):
        await one(ledger, "r", f"a{n}", layers(num_counters))
    used.append(await used_memory(ledger))
    await asyncio.sleep(1.5)
    used.append(await used_memory(ledger))
    print(
        f"memory of an account, {num_counters} counters: {(used[1] - used[0]) / 2000:.0f} bytes after its request, "
        f"{(used[2] - used[0]) / 2000:.0f} once its lease is forgotten"
    )
    await ledger.close()


async def used_memory(ledger: RedisLedger) -> int:
    info = (await ledger._link.ask("INFO", "memory")).decode()
    return int(info.split("used_memory:")[1].split()[0])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder))
        server.start()
        try:
            for num_counters in (5, 40):
                asyncio.run(measure(server.url, num_counters))
                asyncio.run(memory(server.url, num_counters))
        finally:
            server.kill()


if __name__ == "__main__":
    sys.exit(main())
