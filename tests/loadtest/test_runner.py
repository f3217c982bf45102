import asyncio
import signal
import time
from dataclasses import replace
from typing import Any

import httpx
import pytest

from loadtest.client import Target, base_url
from loadtest.loads import ClosedLoop, GammaArrivals
from loadtest.records import BenchError, PlannedRequest, RequestRecord
from loadtest.runner import BenchConfig, BenchResult, Stage, closed_loop, drive, open_loop, run_bench
from loadtest.server_metrics import EngineCounters
from loadtest.workloads import Drawn, RequestSize, WorkloadName

REQUESTS = [PlannedRequest(f"prompt {i}", 2, 4) for i in range(10)]
CONFIG = BenchConfig(
    target=Target(base_url("http://test")),
    model="ok",
    workload=Drawn(WorkloadName.FIXED, RequestSize(4, 4)),
    load=ClosedLoop(3),
    num_requests=10,
    num_warmup=2,
    seed=0,
    timeout_s=5.0,
)


def ignore(stage: Stage, record: RequestRecord) -> None:
    pass


class Gate:
    """A `send` that counts how many run at once and lets each through after a turn of the loop."""

    def __init__(self) -> None:
        self.running = self.most = 0
        self.sent: list[PlannedRequest] = []

    async def send(self, planned: PlannedRequest, *, due_s: float | None = None) -> RequestRecord:
        self.sent.append(planned)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(0)
        finally:
            self.running -= 1
        return RequestRecord(planned, due_s or 0.0, 1.0)


@pytest.mark.parametrize(("concurrency", "most"), [(1, 1), (4, 4), (50, 10)])
async def test_concurrency_is_reached_and_never_passed(concurrency: int, most: int) -> None:
    gate, seen = Gate(), list[RequestRecord]()
    await closed_loop(REQUESTS, gate.send, concurrency, seen.append)
    assert gate.most == most
    assert gate.sent == REQUESTS
    assert [record.planned for record in seen] == REQUESTS


async def test_no_requests() -> None:
    gate = Gate()
    await closed_loop([], gate.send, 4, lambda record: None)
    assert gate.sent == []


async def test_cancelling_stops_every_user() -> None:
    gate, started = Gate(), asyncio.Event()

    async def hang(planned: PlannedRequest, *, due_s: float | None = None) -> RequestRecord:
        started.set()
        gate.running += 1
        try:
            await asyncio.Event().wait()
        finally:
            gate.running -= 1
        raise AssertionError("unreachable")

    task = asyncio.create_task(closed_loop(REQUESTS, hang, 4, lambda record: None))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gate.running == 0


async def test_an_open_loop_waits_for_no_answer() -> None:
    """All are under way at once, though none has ended, and each counts from its own moment."""
    started: list[float] = []
    all_started = asyncio.Event()

    async def send(planned: PlannedRequest, *, due_s: float | None = None) -> RequestRecord:
        assert due_s is not None
        started.append(due_s)
        if len(started) == len(REQUESTS):
            all_started.set()
        await all_started.wait()
        return RequestRecord(planned, due_s, due_s + 1)

    seen: list[RequestRecord] = []
    offsets = [index / 1000 for index in range(len(REQUESTS))]
    await open_loop(REQUESTS, offsets, send, seen.append)
    assert [moment - started[0] for moment in started] == pytest.approx(offsets)
    assert {record.planned for record in seen} == set(REQUESTS)


async def test_a_generator_that_falls_behind_hides_nothing() -> None:
    """The event loop is blocked at the first request: those that were due meanwhile count the time they lost."""

    async def send(planned: PlannedRequest, *, due_s: float | None = None) -> RequestRecord:
        assert due_s is not None
        if planned is REQUESTS[0]:
            time.sleep(0.2)  # noqa: ASYNC251 - that is what this is about
        now = time.perf_counter()
        return RequestRecord(planned, due_s, now, [now], None, None, now)

    seen: list[RequestRecord] = []
    await open_loop(REQUESTS, [0.0] * len(REQUESTS), send, seen.append)
    assert min(record.end_s - record.start_s for record in seen) >= 0.2
    assert min(record.lateness_s for record in seen) >= 0.2


class Counters:
    """A server's counters, read one after the other."""

    def __init__(self, *readings: EngineCounters) -> None:
        self.readings = list(readings)

    async def read(self, model: str) -> EngineCounters:
        return self.readings.pop(0)


BODY = b'data: {"choices":[{"text":"a","finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


async def test_what_the_server_counted_meanwhile() -> None:
    counters = Counters(EngineCounters(steps=10, sequences=10), EngineCounters(steps=14, sequences=26))
    result = BenchResult(replace(CONFIG, metrics=counters))
    await drive(result, ignore, always(httpx.Response(200, content=BODY)))
    assert result.engine == EngineCounters(steps=4, sequences=16)
    assert result.engine.batch_size == 4


async def test_counters_that_began_anew_say_nothing() -> None:
    result = BenchResult(replace(CONFIG, metrics=Counters(EngineCounters(steps=10), EngineCounters(steps=4))))
    await drive(result, ignore, always(httpx.Response(200, content=BODY)))
    assert result.engine is None


async def test_gamma_arrivals_drive_an_open_loop() -> None:
    result = BenchResult(replace(CONFIG, load=GammaArrivals(1000.0)))
    await drive(result, ignore, always(httpx.Response(200, content=BODY)))
    assert len(result.records) == 10
    starts = [record.start_s for record in result.records]
    assert len(set(starts)) == 10
    assert all(record.lateness_s >= 0 for record in result.records)


async def test_token_ids_need_completions() -> None:
    workload = Drawn(WorkloadName.FIXED, RequestSize(4, 4), as_token_ids=True)
    with pytest.raises(BenchError, match="--endpoint completions"):
        await drive(BenchResult(replace(CONFIG, workload=workload)), ignore)


def always(response: httpx.Response) -> httpx.MockTransport:
    return httpx.MockTransport(lambda request: httpx.Response(response.status_code, content=response.content))


async def test_warm_up_is_kept_apart() -> None:
    stages: list[Stage] = []
    body = b'data: {"choices":[{"text":"a","finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    result = BenchResult(CONFIG)
    await drive(result, lambda stage, _: stages.append(stage), always(httpx.Response(200, content=body)))
    assert (len(result.warmup), len(result.records)) == (2, 10)
    assert stages == [Stage.WARMUP] * 2 + [Stage.MEASURED] * 10
    assert result.model == "ok"


async def test_a_warm_up_that_fails_altogether_stops_the_run() -> None:
    result = BenchResult(CONFIG)
    with pytest.raises(BenchError, match=r"every warm-up request failed: 2 x HTTP 503 \(no\)"):
        await drive(result, ignore, always(httpx.Response(503, content=b"no")))
    assert result.records == []


async def test_without_a_warm_up_failures_are_results() -> None:
    result = BenchResult(replace(CONFIG, num_warmup=0))
    await drive(result, ignore, always(httpx.Response(503, content=b"no")))
    assert all(record.failure is not None for record in result.records)
    assert len(result.records) == 10


def test_ctrl_c_keeps_what_had_ended(server: Any) -> None:
    def interrupt(stage: Stage, record: RequestRecord) -> None:
        if stage is Stage.MEASURED:
            signal.raise_signal(signal.SIGINT)

    config = replace(CONFIG, target=Target(base_url(server.url)), num_requests=200, load=ClosedLoop(1))
    result = run_bench(config, interrupt)
    assert result.interrupted
    assert 1 <= len(result.records) < 200
