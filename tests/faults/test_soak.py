"""Everything at once, for as long as it is told to: half of the engines' places taken, engines that die and hang, a
ledger that dies, clients that leave, read slowly and send nonsense. Afterwards the books agree and nothing has grown.

PENSTOCK_SOAK_SECONDS is how long, for each ledger; `make soak` takes ten minutes, `make test` a few seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.clients import Tenant, until
from tests.faults.census import Census, Sample, slope_kib_per_hour
from tests.faults.soak_books import check_books
from tests.faults.traffic import Crowd
from tests.faults.visits import Visit
from tests.penstock_process import PenstockProcess
from tests.quota.redis_server import RedisServer
from tests.scale import cut, publish

SECONDS = float(os.environ.get("PENSTOCK_SOAK_SECONDS") or cut(8, 600))
RATE = 20.0  # requests a second
PLACES, DELAY_MS = 16, 10  # of each of two replicas: an answer takes about 1 s, so that 16 of 32 places are taken
FAULT_EVERY = cut(2, 15)  # seconds, on average
MAX_STOPPED, MAX_AWAY = 6.0, 3.0  # seconds that a worker stands still, that Redis is away
WARM_UP = 1 / 3  # of the time
LONG_RUN = 7200.0  # seconds, from which on the slope is what is promised
MAX_MB_PER_HOUR, MAX_MB_PER_HOUR_OF_SHORT = 1.0, 30.0
MAX_MORE = cut(32, 8)  # files, threads, tasks: pools that were not full, which a short run can't tell from a leak
CAN_FAIL = {"engine_failed", "engine_timeout", "overloaded", "queue_timeout", "quota_unavailable"}
FAILED_RESPONSE = ("server_error", 200)  # the one word that the Responses API has for all of these
CONFIG = f"""
[server]
REDIS
[[models]]
name = "echo"
engine = "fake"
replicas = 2
max_num_seqs = {PLACES}
options = {{ delay_ms = {DELAY_MS} }}
[timeouts]
worker_silence = 3
[quota.plans.default]
account = {{ requests_per_day = 100_000_000, tokens_per_day = 100_000_000_000, concurrent = 1000 }}
"""


class Faults:
    """One after another, round and round."""

    def __init__(self, server: PenstockProcess, redis: RedisServer | None, rng: random.Random) -> None:
        self._server = server
        self._redis = redis
        self._rng = rng
        self.counts: Counter[str] = Counter()

    async def go_on(self) -> None:
        kinds = [self._kill, self._stop] + ([self._restart_redis] if self._redis else [])
        while True:
            for fault in kinds:
                await asyncio.sleep(FAULT_EVERY * self._rng.uniform(0.5, 1.5))
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it died before
                    await fault()

    async def _kill(self) -> None:
        if workers := self._server.worker_pids():
            os.kill(self._rng.choice(workers), signal.SIGKILL)
            self.counts["kills"] += 1

    async def _stop(self) -> None:
        """For less than what is taken for its death, or for more."""
        if not (workers := self._server.worker_pids()):
            return
        worker = self._rng.choice(workers)
        os.kill(worker, signal.SIGSTOP)
        self.counts["stops"] += 1
        try:
            await asyncio.sleep(self._rng.uniform(0.2, MAX_STOPPED))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGCONT)

    async def _restart_redis(self) -> None:
        assert self._redis is not None
        await asyncio.to_thread(self._redis.kill)
        self.counts["redis_restarts"] += 1
        try:
            await asyncio.sleep(self._rng.uniform(0.2, MAX_AWAY))
        finally:
            self._redis.start()


@pytest.fixture(params=["embedded", "redis"])
def redis(request: pytest.FixtureRequest) -> RedisServer | None:
    if request.param == "embedded":
        return None
    mortal: RedisServer = request.getfixturevalue("mortal")
    return mortal


@pytest.fixture
def server(tmp_path: Path, redis: RedisServer | None) -> Iterator[PenstockProcess]:
    config = CONFIG.replace("REDIS", f'redis_url = "{redis.url}"' if redis else "")
    with PenstockProcess(tmp_path, config, module="tests.faults.census") as running:
        yield running


async def watch(server: PenstockProcess, samples: list[Sample]) -> None:
    while True:
        samples.append(Sample.of(server.pid))
        await asyncio.sleep(1)


async def until_quiet(server: PenstockProcess) -> None:
    def is_quiet() -> bool:
        with contextlib.suppress(httpx.HTTPError, OSError):
            names = ("penstock_requests_running", "penstock_requests_waiting")
            return len(server.worker_pids()) == 2 and sum(map(server.metric, names)) == 0
        return False

    await until(is_quiet, "quiet", 60)


@pytest.mark.timeout(int(SECONDS) + 600)
async def test_everything_at_once(server: PenstockProcess, redis: RedisServer | None) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    tenant, rng, samples = Tenant.create(server), random.Random(seed), list[Sample]()
    warm, crowd, faults = Crowd(tenant, rng), Crowd(tenant, rng), Faults(server, redis, rng)
    await warm.come(3, RATE)
    await until_quiet(server)
    before, census = Sample.of(server.pid), Census.of(server)
    nuisances = [asyncio.create_task(faults.go_on()), asyncio.create_task(watch(server, samples))]
    await crowd.come(SECONDS, RATE)
    for task in nuisances:
        task.cancel()
    ends = await asyncio.gather(*nuisances, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends
    assert faults.counts["kills"] > 0 < faults.counts["stops"]
    await until_quiet(server)
    visits = [*warm.visits, *crowd.visits]
    assert "Traceback" not in server.log.read_text()
    check_visits(visits, [*warm.broken, *crowd.broken], warm.refused + crowd.refused)
    figures = await check_books(tenant, visits)
    figures |= await check_growth(server, samples, before, census)
    kept = "Redis" if redis else "embedded ledger"
    publish(20, f"soak, {kept}", seconds=SECONDS, requests=len(visits), **faults.counts, **figures)


def check_visits(visits: list[Visit], broken: list[str], refused: Counter[int]) -> None:
    """Each ended once, and is right as far as it came."""
    assert not broken, broken[:3]
    for visit in visits:
        visit.check()
    assert all(400 <= status < 500 for status in refused), refused
    codes = Counter(visit.code for visit in visits if visit.code and (visit.code, visit.status) != FAILED_RESPONSE)
    print(f"ends {Counter(visit.end for visit in visits)}, errors {codes}, malformed {refused}")
    assert not codes.keys() - CAN_FAIL, codes


async def check_growth(
    server: PenstockProcess, samples: list[Sample], before: Sample, census: Census
) -> dict[str, float]:
    """The slope is that of least squares through a sample a second behind the first third, in which caches fill."""
    await until(lambda: Sample.of(server.pid).num_files <= before.num_files + MAX_MORE, "the end of connections")
    after, last = await asyncio.to_thread(Sample.of, server.pid), await asyncio.to_thread(Census.of, server)
    assert after.num_threads <= before.num_threads + MAX_MORE
    assert last.num_tasks <= census.num_tasks + MAX_MORE
    tenths = [samples[len(samples) * tenth // 10].rss_kib // 1024 for tenth in range(10)]
    print(f"MB, ten times: {tenths}")
    slope = slope_kib_per_hour(samples[int(WARM_UP * len(samples)) :]) / 1024
    if SECONDS >= 600:
        assert slope <= (MAX_MB_PER_HOUR if SECONDS >= LONG_RUN else MAX_MB_PER_HOUR_OF_SHORT)
    return {
        "MB": after.rss_kib / 1024,
        "MB_an_hour": slope,
        "more_files": after.num_files - before.num_files,
        "more_threads": after.num_threads - before.num_threads,
        "more_tasks": last.num_tasks - census.num_tasks,
        "more_objects": last.num_objects - census.num_objects,
    }
