"""What a long prompt that arrives does to the streams that run: the gaps between their tokens before it and during."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from loadtest.client import LoadClient, Target
from loadtest.measure import percentile
from loadtest.records import BenchError, PlannedRequest, RequestRecord
from loadtest.workloads import Draw, Writer, random_of

STREAMS, STREAM_TOKENS, LONG_TOKENS = 4, 160, 4000
TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Disturbance:
    """p99 of the gaps, in seconds, and the long prompt's TTFT."""

    calm_s: float
    disturbed_s: float
    long_ttft_s: float

    @property
    def ratio(self) -> float:
        return self.disturbed_s / self.calm_s


def measure(target: Target, model: str | None, seed: int, calm_s: float) -> Disturbance:
    """`calm_s`: how long the streams run before the prompt comes. Raises BenchError."""
    return asyncio.run(_measure(target, model, seed, calm_s))


async def _measure(target: Target, model: str | None, seed: int, calm_s: float) -> Disturbance:
    writer = Writer(random_of("disturbance", Draw(seed)), 7, as_token_ids=False)
    short = [PlannedRequest(writer.write(64), 64, STREAM_TOKENS) for _ in range(STREAMS)]
    long = PlannedRequest(writer.write(LONG_TOKENS), LONG_TOKENS, 1)
    async with LoadClient(target, concurrency=STREAMS + 1, timeout_s=TIMEOUT_S) as client:
        name = await client.resolve_model(model)
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(client.send(one, name)) for one in short]
            await asyncio.sleep(calm_s)
            arrived = await client.send(long, name)
    return of([task.result() for task in running], arrived)


def of(streams: Sequence[RequestRecord], long: RequestRecord) -> Disturbance:
    """Raises BenchError: a request failed, or the streams had ended before the prompt was computed."""
    failures = [record.failure for record in (*streams, long) if record.failure is not None]
    if failures:
        raise BenchError(f"{len(failures)} requests failed: {failures[0].reason} {failures[0].detail}")
    first, last = long.start_s, long.content_times_s[0]
    began = max(record.content_times_s[0] for record in streams)
    gaps = [pair for record in streams for pair in pairwise(record.content_times_s)]
    calm = sorted(after - before for before, after in gaps if before >= began and after <= first)
    disturbed = sorted(after - before for before, after in gaps if after > first and before < last)
    if not calm or not disturbed:
        raise BenchError("the streams did not run before and during the long prompt")
    return Disturbance(percentile(calm, 99), percentile(disturbed, 99), last - first)
