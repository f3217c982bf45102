"""What an admission and its settlement cost: calls, and the server's time."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from quota.redis import RedisLedger
from tests.quota.chaos_proxy import ChaosProxy
from tests.quota.measure import layers, measure
from tests.quota.redis_server import RedisServer
from tests.scale import IS_SOAK, cut, publish

REQUESTS = cut(50, 1000)
COUNTERS = 40
P99_US = 300
QUIET_LOAD = 1.0
PATIENCE_S = 120


async def test_one_call_admits_and_one_settles(redis_server: RedisServer, prefix: str) -> None:
    """Check 5, the calls: counted by the replies that pass a proxy, of an account that is open already."""
    proxy = ChaosProxy(redis_server.port)
    await proxy.start()
    ledger, ours = RedisLedger(proxy.url, prefix=prefix), layers(COUNTERS)
    await ledger.settle("unknown", "acme", 1)  # Redis knows the scripts
    await ledger.reserve("first", "acme", ours, 1)
    for n in range(REQUESTS):
        before = proxy.num_replies
        assert (await ledger.reserve(f"r{n}", "acme", ours, 500)).admitted
        assert proxy.num_replies == before + 1
        assert await ledger.settle(f"r{n}", "acme", 300)
        assert proxy.num_replies == before + 2
    await ledger.close()
    await proxy.close()


def is_quiet() -> bool:
    """Waits for the tests before to be forgotten by the load average."""
    end = time.monotonic() + PATIENCE_S
    while os.getloadavg()[0] >= QUIET_LOAD and time.monotonic() < end:
        time.sleep(1)
    return os.getloadavg()[0] < QUIET_LOAD


@pytest.mark.skipif(not IS_SOAK, reason="times say nothing beside other tests: `make soak` measures them")
def test_the_servers_time(mortal: RedisServer) -> None:
    """Check 5, the time of each of the two calls: a promise on a machine that does nothing else, a figure elsewhere."""
    was_quiet, load = is_quiet(), os.getloadavg()[0]
    cost = asyncio.run(measure(mortal.url, COUNTERS))
    publish(
        5,
        f"admit + settle at {COUNTERS} counters, {'a quiet machine' if was_quiet else f'beside a load of {load:.1f}'}",
        calls_a_request=2,
        us_server_time_at_p50=cost.p50_us,
        us_server_time_at_p99=cost.p99_us,
        admissions_settled_a_second_a_gateway_core=cost.a_core_second / 2,
    )
    if was_quiet:
        assert cost.p99_us <= P99_US
