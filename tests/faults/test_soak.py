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
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.clients import Tenant, until
from tests.faults.census import Census, Sample, slope_kib_per_hour
from tests.faults.traffic import Crowd
from tests.faults.visits import Visit
from tests.penstock_process import ADMIN_KEY, PenstockProcess
from tests.quota.redis_server import RedisServer
from tests.scale import cut, publish

SECONDS = float(os.environ.get("PENSTOCK_SOAK_SECONDS") or cut(8, 600))
RATE = 20.0  # requests a second
PLACES, DELAY_MS = 16, 10  # of each of two replicas: an answer takes about 1 s, so that 16 of 32 places are taken
FAULT_EVERY = cut(2, 15)  # seconds, on average
MAX_STOPPED, MAX_AWAY = 6.0, 3.0  # seconds that a worker stands still, that Redis is away
TWO_LEASES = 60.0  # seconds
WARM_UP = 1 / 3  # of the time
LONG_RUN = 7200.0  # seconds, from which on the slope is what is promised
MAX_MB_PER_HOUR, MAX_MB_PER_HOUR_OF_SHORT = 1.0, 30.0
MAX_MORE = 8  # files, threads, tasks: pools that were not full
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


@dataclass(slots=True, frozen=True)
class Row:
    """Of what was used."""

    request_id: str
    endpoint: str
    prompt_tokens: int
    completion_tokens: int

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


def rows_of(tenant: Tenant, folder: Path) -> list[Row]:
    columns = ", ".join(Row.__dataclass_fields__)
    with contextlib.closing(sqlite3.connect(folder / "data" / "penstock.db")) as database:
        found = database.execute(f"SELECT {columns} FROM usage WHERE account_id = ?", (tenant.id,))  # noqa: S608
        return [Row(*row) for row in found]


def ledger_of(tenant: Tenant) -> dict[str, int]:
    """What is used of each limit of the account, by the admin API."""
    with tenant.server.http(ADMIN_KEY) as admin:
        answer = admin.get(f"/admin/v1/accounts/{tenant.id}/limits").raise_for_status().json()
    return {row["dimension"]: row["used"] for row in answer["limits"] if row["level"] == "account"}


def holds_nothing(tenant: Tenant) -> bool:
    """Asked of a ledger that may just have been started again."""
    try:
        return ledger_of(tenant)["concurrent"] == 0
    except httpx.HTTPStatusError:
        return False


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
    await asyncio.gather(*nuisances, return_exceptions=True)
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


async def check_books(tenant: Tenant, visits: list[Visit]) -> dict[str, float]:
    """The ledger, the rows and what clients were told are one number; what nobody was told is in the first two."""
    finished = await asyncio.to_thread(tenant.server.metric, "penstock_requests_total")
    await until(lambda: len(rows_of(tenant, tenant.server.folder)) >= finished, "the rows")
    rows = rows_of(tenant, tenant.server.folder)
    began = time.monotonic()
    await until(lambda: holds_nothing(tenant), "the end of all leases", TWO_LEASES)
    ledger, used = ledger_of(tenant), sum(row.tokens for row in rows)
    assert len(rows) == finished
    assert ledger["tokens_per_day"] == used
    assert ledger["requests_per_day"] == sum(row.tokens > 0 for row in rows)  # what was not begun is no request
    told = check_told(visits, rows)
    return {
        "tokens_charged": used,
        "of_them_told": told,
        "charged_and_not_used": ledger["tokens_per_day"] - used,
        "s_until_no_lease_was_left": time.monotonic() - began,
    }


def check_told(visits: list[Visit], rows: list[Row]) -> int:
    """Tokens that clients were told of."""
    by_id = {row.request_id: row for row in rows}
    for visit in visits:
        if visit.status == 200 and visit.request_id:
            row = by_id.pop(visit.request_id)
            assert visit.usage in (None, (row.prompt_tokens, row.completion_tokens)), (visit, row)
            assert row.completion_tokens >= len(visit.text)
    # A WebSocket's requests have ids of their own, and who left early enough knows none.
    told = Counter(visit.usage for visit in visits if visit.kind == "chat socket" and visit.usage)
    others = Counter((row.prompt_tokens, row.completion_tokens) for row in by_id.values())
    assert not told - others, "nobody was charged for these"
    without_id = sum(not visit.request_id and visit.kind not in ("malformed", "noise") for visit in visits)
    failed = sum(bool(visit.request_id) and visit.status != 200 for visit in visits)
    assert len(by_id) <= without_id + failed, "rows of no request"
    return sum(sum(visit.usage) for visit in visits if visit.usage)


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
