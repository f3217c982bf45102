import asyncio
import signal
from dataclasses import replace
from typing import Any

import httpx
import pytest

from loadtest.client import Target, base_url
from loadtest.records import BenchError, PlannedRequest, RequestRecord
from loadtest.runner import BenchConfig, BenchResult, Stage, closed_loop, drive, run_bench
from loadtest.workloads import RequestSize, WorkloadName

REQUESTS = [PlannedRequest(f"prompt {i}", 2, 4) for i in range(10)]
CONFIG = BenchConfig(
    target=Target(base_url("http://test")),
    model="ok",
    workload=WorkloadName.FIXED,
    size=RequestSize(4, 4),
    concurrency=3,
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

    async def send(self, planned: PlannedRequest) -> RequestRecord:
        self.sent.append(planned)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(0)
        finally:
            self.running -= 1
        return RequestRecord(planned, 0.0, 1.0)


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

    async def hang(planned: PlannedRequest) -> RequestRecord:
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

    config = replace(CONFIG, target=Target(base_url(server.url)), num_requests=200, concurrency=1)
    result = run_bench(config, interrupt)
    assert result.interrupted
    assert 1 <= len(result.records) < 200
