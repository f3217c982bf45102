"""Two ways to serve a model, side by side: the same workload on both in turns, A B A B, and the ratios.

    python -m loadtest.engines "models/tiny-chat --dtype float32" "DIR --engine onnx"

On a shared machine the speed of one run says little; the ratio of two that follow each other says more.
"""

import secrets
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from statistics import median
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from loadtest.client import Endpoint, Target, base_url
from loadtest.local import serving
from loadtest.measure import SLO, Summary, summarize
from loadtest.records import BenchError
from loadtest.runner import BenchConfig, run_bench
from loadtest.workloads import RequestSize, WorkloadName


@dataclass(frozen=True, slots=True)
class Speed:
    """What one run measured. Times in seconds."""

    tokens_per_s: float
    ttft_s: float  # median
    itl_s: float  # median

    @classmethod
    def of(cls, summary: Summary) -> "Speed":
        """Raises BenchError when a request failed: the others were faster for it."""
        if summary.num_failed or summary.ttft_s is None or summary.itl_s is None:
            raise BenchError(f"{summary.num_failed} requests failed: {dict(summary.failures)}")
        return cls(summary.output_tokens_per_s, summary.ttft_s.p50, summary.itl_s.p50)


@dataclass(frozen=True, slots=True)
class Ratios:
    """B over A, the median over the rounds: above 1, B makes more tokens, or takes longer."""

    tokens_per_s: float
    ttft: float
    itl: float

    @classmethod
    def of(cls, rounds: Sequence[tuple[Speed, Speed]]) -> "Ratios":
        return cls(
            tokens_per_s=median(b.tokens_per_s / a.tokens_per_s for a, b in rounds),
            ttft=median(b.ttft_s / a.ttft_s for a, b in rounds),
            itl=median(b.itl_s / a.itl_s for a, b in rounds),
        )


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="Arguments of penstock serve, in one word.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The same of the other server.")],
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each.")] = 3,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight at any time.")] = 16,
    requests: Annotated[int, typer.Option(min=1, help="Measured requests a run.")] = 64,
    input_tokens: Annotated[int, typer.Option(min=1, help="Approximate prompt size.")] = 64,
    output_tokens: Annotated[int, typer.Option(min=1, help="Tokens of every answer.")] = 64,
) -> None:
    """Serve both, drive them in turns, print tokens a second, TTFT and ITL of every run, and B over A."""
    try:
        with ExitStack() as stack:
            targets = [_serve(stack, shlex.split(words)) for words in (first, second)]
            size = RequestSize(input_tokens, output_tokens)
            a, b = (_config(target, size, concurrency, requests) for target in targets)
            measured = [(_measure(a, seed), _measure(b, seed)) for seed in range(rounds)]
    except BenchError as error:
        typer.echo(f"loadtest.engines: {error}", err=True)
        raise typer.Exit(1) from None
    Console(highlight=False).print(_table(measured))


def _serve(stack: ExitStack, arguments: Sequence[str]) -> Target:
    """A server that runs until `stack` unwinds. Raises BenchError."""
    key = secrets.token_urlsafe(24)
    if (url := stack.enter_context(serving(arguments, key))) is None:
        raise BenchError(f"penstock serve {shlex.join(arguments)} did not start; it has said why")
    return Target(base_url(url), key, Endpoint.CHAT, ignore_eos=True)


def _config(target: Target, size: RequestSize, concurrency: int, requests: int) -> BenchConfig:
    return BenchConfig(
        target=target,
        model=None,
        workload=WorkloadName.FIXED,
        size=size,
        concurrency=concurrency,
        num_requests=requests,
        num_warmup=concurrency,
        seed=0,
        timeout_s=600,
    )


def _measure(config: BenchConfig, seed: int) -> Speed:
    """One run: the same requests for the same seed. Raises BenchError."""
    result = run_bench(replace(config, seed=seed), lambda stage, record: None)
    if result.interrupted:
        raise BenchError("interrupted")
    return Speed.of(summarize(result.records, SLO()))


def _table(measured: Sequence[tuple[Speed, Speed]]) -> Table:
    table = Table("run", "tok/s", "TTFT ms", "ITL ms")
    for number, pair in enumerate(measured, start=1):
        for name, speed in zip("AB", pair, strict=True):
            times = (f"{seconds * 1000:,.1f}" for seconds in (speed.ttft_s, speed.itl_s))
            table.add_row(f"{name}{number}", f"{speed.tokens_per_s:,.0f}", *times)
    ratios = Ratios.of(measured)
    table.add_row("B / A", *(f"{ratio:.2f}" for ratio in (ratios.tokens_per_s, ratios.ttft, ratios.itl)), style="bold")
    return table


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)  # locals hold the key
    app.command()(compare)
    app()
