"""Drives requests at a fixed concurrency: warm-up, then the measured ones."""

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from time import process_time

import httpx

from loadtest.client import LoadClient, Target
from loadtest.measure import duration_s, failures_by_reason
from loadtest.records import BenchError, PlannedRequest, RequestRecord
from loadtest.workloads import RequestSize, Stream, WorkloadName, take


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """Everything that decides what is sent. `model` None: the server's first."""

    target: Target
    model: str | None
    workload: WorkloadName
    size: RequestSize
    concurrency: int
    num_requests: int
    num_warmup: int
    seed: int
    timeout_s: float


@dataclass(slots=True)
class BenchResult:
    """What a run gathered; filled as it goes, so that an interrupted run keeps what it has.

    `client_cpu_s` is this process's CPU time over the measured part.
    """

    config: BenchConfig
    model: str = ""
    warmup: list[RequestRecord] = field(default_factory=list)
    records: list[RequestRecord] = field(default_factory=list)
    client_cpu_s: float = 0.0
    interrupted: bool = False

    @property
    def client_cpu_share(self) -> float:
        """Cores the generator used; near 1 it is itself the bottleneck, and the numbers are its own."""
        elapsed = duration_s(self.records)
        return self.client_cpu_s / elapsed if elapsed > 0 else 0.0


class Stage(StrEnum):
    WARMUP = "warm-up"
    MEASURED = "measuring"


OnRecord = Callable[[RequestRecord], None]
OnProgress = Callable[[Stage, RequestRecord], None]
Send = Callable[[PlannedRequest], Awaitable[RequestRecord]]


async def closed_loop(requests: Sequence[PlannedRequest], send: Send, concurrency: int, on_record: OnRecord) -> None:
    """`concurrency` users, each sending its next request when its last has ended.

    `on_record` runs on the event loop, once a request, in order of completion. Cancellation stops every
    user before it is passed on.
    """
    waiting = iter(requests)
    async with asyncio.TaskGroup() as users:
        for _ in range(min(concurrency, len(requests))):
            users.create_task(_user(waiting, send, on_record))


async def _user(waiting: Iterator[PlannedRequest], send: Send, on_record: OnRecord) -> None:
    for planned in waiting:
        on_record(await send(planned))


def run_bench(config: BenchConfig, on_progress: OnProgress) -> BenchResult:
    """A whole run on a loop of its own. Ctrl-C ends it early with `interrupted` set. Raises BenchError."""
    result = BenchResult(config)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(drive(result, on_progress))
    except KeyboardInterrupt:
        result.interrupted = True
    return result


async def drive(
    result: BenchResult, on_progress: OnProgress, transport: httpx.AsyncBaseTransport | None = None
) -> None:
    """Fill `result`. Raises BenchError when the server cannot be reached, or fails the whole warm-up."""
    config = result.config
    client = LoadClient(config.target, concurrency=config.concurrency, timeout_s=config.timeout_s, transport=transport)
    async with client:
        result.model = await client.resolve_model(config.model)
        send = partial(client.send, model=result.model)
        await _warm_up(result, send, on_progress)
        await _measure(result, send, on_progress)


async def _warm_up(result: BenchResult, send: Send, on_progress: OnProgress) -> None:
    """Opens the connections and wakes the server up; none of it is counted."""

    def note(record: RequestRecord) -> None:
        result.warmup.append(record)
        on_progress(Stage.WARMUP, record)

    config = result.config
    await closed_loop(_planned(config, config.num_warmup, Stream.WARMUP), send, config.concurrency, note)
    first = next((record.failure for record in result.warmup if record.failure is not None), None)
    if first is not None and all(record.failure is not None for record in result.warmup):
        reasons = ", ".join(f"{count} x {why}" for why, count in failures_by_reason(result.warmup).items())
        raise BenchError(f"every warm-up request failed: {reasons} ({first.detail})")


async def _measure(result: BenchResult, send: Send, on_progress: OnProgress) -> None:
    def note(record: RequestRecord) -> None:
        result.records.append(record)
        on_progress(Stage.MEASURED, record)

    config = result.config
    requests = _planned(config, config.num_requests, Stream.MEASURED)
    gc.collect()  # now, rather than as a pause inside someone's ITL
    cpu_before_s = process_time()
    try:
        await closed_loop(requests, send, config.concurrency, note)
    finally:
        result.client_cpu_s = process_time() - cpu_before_s


def _planned(config: BenchConfig, count: int, stream: Stream) -> list[PlannedRequest]:
    return take(config.workload, config.size, count, seed=config.seed, stream=stream)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed: less of the generator's own time in the numbers."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
