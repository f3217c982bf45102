"""Drives one load at a server: warm-up, then the measured requests."""

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from time import perf_counter, process_time
from typing import Protocol

import httpx

from loadtest.client import Endpoint, LoadClient, Target
from loadtest.loads import ClosedLoop, Load, offsets_s
from loadtest.measure import duration_s, failures_by_reason
from loadtest.records import BenchError, PlannedRequest, RequestRecord
from loadtest.server_metrics import SETTLE_S, CounterSource, EngineCounters
from loadtest.workloads import Draw, Stream, Workload, take

WARMUP_CONCURRENCY = 16  # of an open loop, which has none of its own


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """Everything that decides what is sent. `model` None: the server's first. `variant`: see `Draw`.

    `metrics`: where the server's own counters are read, around the measured part.
    """

    target: Target
    model: str | None
    workload: Workload
    load: Load
    num_requests: int
    num_warmup: int
    seed: int
    timeout_s: float
    variant: int = 0
    metrics: CounterSource | None = None


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
    engine: EngineCounters | None = None
    interrupted: bool = False

    @property
    def client_cpu_share(self) -> float:
        """Cores the generator used; near 1 it is itself the bottleneck, and the numbers are its own."""
        elapsed = duration_s(self.records)
        return self.client_cpu_s / elapsed if elapsed > 0 else 0.0


class Stage(StrEnum):
    WARMUP = "warm-up"
    MEASURED = "measuring"


class Send(Protocol):
    """`due_s`: the moment that latencies count from; None: when it is called."""

    def __call__(self, planned: PlannedRequest, *, due_s: float | None = None) -> Awaitable[RequestRecord]: ...


OnRecord = Callable[[RequestRecord], None]
OnProgress = Callable[[Stage, RequestRecord], None]


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


async def open_loop(
    requests: Sequence[PlannedRequest], due_s: Sequence[float], send: Send, on_record: OnRecord
) -> None:
    """Each request at its moment, seconds from now and in order, however many are under way. Otherwise as
    `closed_loop`."""
    start_s = perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for planned, offset in zip(requests, due_s, strict=True):
            moment = start_s + offset
            await asyncio.sleep(max(0.0, moment - perf_counter()))
            tasks.create_task(_arrival(planned, moment, send, on_record))


async def _arrival(planned: PlannedRequest, due_s: float, send: Send, on_record: OnRecord) -> None:
    on_record(await send(planned, due_s=due_s))


def run_bench(config: BenchConfig, on_progress: OnProgress) -> BenchResult:
    """A whole run on a loop of its own. Ctrl-C ends it early with `interrupted` set. Raises BenchError."""
    result = BenchResult(config)
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(drive(result, on_progress))
    except KeyboardInterrupt:
        result.interrupted = True
    return result


async def drive(
    result: BenchResult, on_progress: OnProgress, transport: httpx.AsyncBaseTransport | None = None
) -> None:
    """Fill `result`. Raises BenchError when the server cannot be reached, or fails the whole warm-up."""
    config = result.config
    _check(config)
    connections = config.load.concurrency if isinstance(config.load, ClosedLoop) else None
    client = LoadClient(config.target, concurrency=connections, timeout_s=config.timeout_s, transport=transport)
    async with client:
        result.model = await client.resolve_model(config.model)
        send = partial(client.send, model=result.model)
        await _warm_up(result, send, on_progress)
        before = await config.metrics.read(result.model) if config.metrics else None
        await _measure(result, send, on_progress)
        if config.metrics and before is not None:
            await asyncio.sleep(SETTLE_S)
            result.engine = (await config.metrics.read(result.model)).since(before)


def _check(config: BenchConfig) -> None:
    by_ids = any(not isinstance(request.prompt, str) for request in _planned(config, 1, Stream.MEASURED))
    if by_ids and config.target.endpoint is not Endpoint.COMPLETIONS:
        raise BenchError("prompts of token ids need --endpoint completions: a chat takes text")


async def _warm_up(result: BenchResult, send: Send, on_progress: OnProgress) -> None:
    """Opens the connections and wakes the server up; none of it is counted."""

    def note(record: RequestRecord) -> None:
        result.warmup.append(record)
        on_progress(Stage.WARMUP, record)

    config = result.config
    users = config.load.concurrency if isinstance(config.load, ClosedLoop) else WARMUP_CONCURRENCY
    await closed_loop(_planned(config, config.num_warmup, Stream.WARMUP), send, users, note)
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
        if isinstance(config.load, ClosedLoop):
            await closed_loop(requests, send, config.load.concurrency, note)
        else:
            await open_loop(requests, offsets_s(config.load, requests, f"{config.seed}"), send, note)
    finally:
        result.client_cpu_s = process_time() - cpu_before_s


def _planned(config: BenchConfig, count: int, stream: Stream) -> list[PlannedRequest]:
    return take(config.workload, count, Draw(config.seed, stream, config.variant))


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed: less of the generator's own time in the numbers."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
