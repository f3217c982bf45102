"""What a big batch does to everybody else's latency: the same requests with and without one, in turns, A B A B.

    python -m loadtest.background                    starts the bundled model for it
    python -m loadtest.background --url URL          asks a server that runs already; the key is PENSTOCK_API_KEY

Requests arrive as a Poisson process, whoever is still being answered. A round is one part without a batch and one with
a batch that runs from before its first request to behind its last one.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import accumulate
from statistics import median
from typing import Annotated, Any

import httpx
import typer

from loadtest.client import LoadClient, Target, base_url
from loadtest.local import serving
from loadtest.measure import itl_s, percentile, ttft_s
from loadtest.options import standalone
from loadtest.records import BenchError, PlannedRequest, RequestRecord
from loadtest.runner import open_loop
from loadtest.workloads import Draw, Writer, random_of

TIMEOUT_S = 120.0
NUM_LINES = 20_000  # more than a part can see the end of
PERCENTS = (50, 95)


@dataclass(slots=True, frozen=True)
class Plan:
    rounds: int
    requests: int  # of each part
    rate: float  # a second
    input_tokens: int
    output_tokens: int


@dataclass(slots=True, frozen=True)
class Part:
    """TTFT and ITL at each of PERCENTS, in seconds."""

    ttft: tuple[float, ...]
    itl: tuple[float, ...]

    @classmethod
    def of(cls, records: Sequence[RequestRecord]) -> Part:
        if failed := [record for record in records if record.failure is not None]:
            raise BenchError(f"{len(failed)} requests failed: {failed[0].failure}")
        first = sorted(t for record in records if (t := ttft_s(record)) is not None)
        gaps = sorted(gap for record in records for gap in itl_s(record))
        return cls(
            tuple(percentile(first, percent) for percent in PERCENTS),
            tuple(percentile(gaps, percent) for percent in PERCENTS),
        )


class Batches:
    """The files and batches of a server."""

    def __init__(self, target: Target, model: str) -> None:
        self._http = httpx.AsyncClient(
            base_url=target.base_url, headers={"authorization": f"Bearer {target.api_key}"}, timeout=TIMEOUT_S
        )
        self._model = model
        self._file = ""

    async def upload(self, output_tokens: int) -> None:
        lines = "\n".join(json.dumps(self._line(number, output_tokens)) for number in range(NUM_LINES))
        form = {"file": ("lines.jsonl", lines.encode())}
        self._file = (await self._asked("POST", "files", files=form, data={"purpose": "batch"}))["id"]

    def _line(self, number: int, output_tokens: int) -> dict[str, Any]:
        messages = [{"role": "user", "content": f"Line {number}: how are quotas, keys and models set up?"}]
        body = {"model": self._model, "messages": messages, "max_tokens": output_tokens, "ignore_eos": True}
        return {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[list[int]]:
        """A batch that runs while this is open; how many of its lines have run meanwhile is there at the end."""
        body = {"input_file_id": self._file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        batch = await self._asked("POST", "batches", json=body)
        done: list[int] = []
        try:
            batch = await self._until(batch, lambda batch: batch["request_counts"]["completed"] > 0)
            before = batch["request_counts"]["completed"]
            yield done
            batch = await self._asked("GET", f"batches/{batch['id']}")
            done.append(batch["request_counts"]["completed"] - before)
        finally:
            await self._asked("POST", f"batches/{batch['id']}/cancel")
            await self._until(batch, lambda batch: batch["status"] == "cancelled")

    async def _until(self, batch: dict[str, Any], condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        while not condition(batch):
            await asyncio.sleep(0.2)
            batch = await self._asked("GET", f"batches/{batch['id']}")
        return batch

    async def _asked(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        answer = await self._http.request(method, path, **arguments)
        if not answer.is_success:
            raise BenchError(f"{method} {path}: HTTP {answer.status_code}: {answer.text[:200]}")
        found: dict[str, Any] = answer.json()
        return found

    async def close(self) -> None:
        await self._http.aclose()


async def measure(target: Target, model: str | None, plan: Plan) -> list[tuple[Part, Part]]:
    """A pair a round: without the batch, with it."""
    async with LoadClient(target, concurrency=None, timeout_s=TIMEOUT_S) as client:
        name = await client.resolve_model(model)
        batches = Batches(target, name)
        try:
            await batches.upload(plan.output_tokens)
            await _part(client, name, plan, variant=0)  # a warm-up
            return [await _round(client, batches, name, plan, number) for number in range(plan.rounds)]
        finally:
            await batches.close()


async def _round(client: LoadClient, batches: Batches, model: str, plan: Plan, number: int) -> tuple[Part, Part]:
    alone = await _part(client, model, plan, variant=2 * number + 1)
    async with batches.running() as done:
        beside = await _part(client, model, plan, variant=2 * number + 2)
    typer.echo(f"round {number + 1}: {_words(alone)} | beside {done[0]} lines: {_words(beside)}")
    return alone, beside


async def _part(client: LoadClient, model: str, plan: Plan, variant: int) -> Part:
    rng = random_of("background", Draw(variant))
    writer = Writer(rng, variant, as_token_ids=False)
    planned = [
        PlannedRequest(writer.write(plan.input_tokens), plan.input_tokens, plan.output_tokens)
        for _ in range(plan.requests)
    ]
    due = list(accumulate(rng.expovariate(plan.rate) for _ in planned))
    records: list[RequestRecord] = []

    async def send(planned: PlannedRequest, *, due_s: float | None = None) -> RequestRecord:
        return await client.send(planned, model, due_s)

    await open_loop(planned, due, send, records.append)
    return Part.of(records)


def _words(part: Part) -> str:
    return " ".join(
        f"{name} " + "/".join(f"{1000 * value:.1f}" for value in values) + " ms"
        for name, values in (("TTFT", part.ttft), ("ITL", part.itl))
    )


def report(rounds: Sequence[tuple[Part, Part]]) -> str:
    """A line a figure: medians over the rounds, and the ratios of the pairs."""
    lines = [f"{'':10}{'alone':>10}{'beside':>10}{'ratio':>8}   of {len(rounds)} rounds"]
    for name in ("ttft", "itl"):
        for index, percent in enumerate(PERCENTS):
            pairs = [(getattr(a, name)[index], getattr(b, name)[index]) for a, b in rounds]
            ratios = sorted(beside / alone for alone, beside in pairs)
            alone, beside = (1000 * median(values) for values in zip(*pairs, strict=True))
            span = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
            lines.append(f"{name.upper()} p{percent:<5}{alone:>8.1f}ms{beside:>8.1f}ms{median(ratios):>8.2f}   {span}")
    return "\n".join(lines)


def main(
    url: Annotated[str | None, typer.Option(help="Of a server that runs already.")] = None,
    model: Annotated[str | None, typer.Option(help="Its first one otherwise.")] = None,
    rounds: int = 5,
    requests: Annotated[int, typer.Option(help="Of each part of a round.")] = 60,
    rate: Annotated[float, typer.Option(help="Requests a second.")] = 4.0,
    input_tokens: int = 48,
    output_tokens: int = 32,
) -> None:
    """Latency with and without a big batch, in turns."""
    plan = Plan(rounds, requests, rate, input_tokens, output_tokens)
    key, admin_key = os.environ.get("PENSTOCK_API_KEY") or secrets.token_urlsafe(24), secrets.token_urlsafe(24)
    with ExitStack() as stack:
        found = url or stack.enter_context(serving((), key, admin_key))
        if found is None:
            raise typer.Exit(1)
        try:
            target = Target(base_url(found), key, ignore_eos=True)
            typer.echo(report(asyncio.run(measure(target, model, plan))))
        except BenchError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(1) from None


if __name__ == "__main__":
    standalone(main)
