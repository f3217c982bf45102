"""Ways to serve a model, side by side: the same workload on all of them in turns, A B A B, and the ratios to the first.

    python -m loadtest.engines "models/tiny-chat --dtype float32" "DIR --engine onnx"

Each is the arguments of a `penstock serve` that is started for it, or the URL of a server that runs already.
"""

import secrets
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated

import typer

from loadtest import options
from loadtest.client import Endpoint, Target, base_url
from loadtest.figures import Measured
from loadtest.loads import ClosedLoop
from loadtest.local import serving
from loadtest.options import WorkloadOptions
from loadtest.progress import progress_bars
from loadtest.records import BenchError
from loadtest.results import Report
from loadtest.runner import BenchConfig
from loadtest.server_metrics import MetricsSource
from loadtest.sweep import PlannedRun, Run, plan_runs, run_all
from loadtest.workloads import Workload, WorkloadName
from loadtest.writing import EXIT_FAILED, deliver

TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Contender:
    """A server in the comparison. `metrics`: None of one that we did not start."""

    name: str
    target: Target
    metrics: MetricsSource | None = None


def compare(
    servers: Annotated[
        list[str], typer.Argument(metavar="A B...", help="Arguments of penstock serve, in one word each, or URLs.")
    ],
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each, in turns.")] = 3,
    concurrency: options.Concurrencies = None,
    requests: options.Requests = 64,
    warmup: options.Warmup = None,
    workload: options.Name = None,
    input_tokens: options.InputTokens = None,
    output_tokens: options.OutputTokens = None,
    prefix_tokens: options.PrefixTokens = None,
    prefixes: options.Prefixes = None,
    trace: options.TraceFile = None,
    trace_scale: options.TraceScale = None,
    api_key: Annotated[str | None, typer.Option(envvar="PENSTOCK_API_KEY", help="For URLs.")] = None,
    json_file: options.JSONFile = None,
    html_file: options.HTMLFile = None,
    no_progress: Annotated[bool, typer.Option("--no-progress", help="No progress bar.")] = False,
) -> None:
    """Serve all, drive them in turns, and print what each did and its ratios to A."""
    try:
        options.check_writable(json_file, html_file)
        if len(servers) < 2:
            raise BenchError("one server is no comparison; name another")
        sizes = (input_tokens, output_tokens, prefix_tokens, prefixes)
        unset = WorkloadName.TRACE if trace else WorkloadName.FIXED
        chosen = WorkloadOptions(workload or unset, *sizes, trace, trace_scale).build()
        loads = options.closed_loops(concurrency)
        with ExitStack() as stack:
            contenders = [enter(stack, words, api_key) for words in servers]
            configs = [config_of(each, chosen, requests) for each in contenders]
            planned = plan_runs(configs, loads, rounds, lambda load: options.num_warmup(load, warmup))
            runs = drive(planned, shows_progress=not no_progress)
    except BenchError as error:
        typer.echo(f"loadtest.engines: {error}", err=True)
        raise typer.Exit(EXIT_FAILED) from None
    report = Report(f"{chosen.name} workload, side by side", tuple(servers), measured(runs))
    raise typer.Exit(deliver(report, json_file, html_file))


def enter(stack: ExitStack, words: str, api_key: str | None = None) -> Contender:
    """A server that runs until `stack` unwinds, or that runs anyway. Raises BenchError."""
    if words.startswith(("http://", "https://")):
        return Contender(words, Target(base_url(words), (api_key or "").strip() or None, ignore_eos=True))
    key, admin_key = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
    if (url := stack.enter_context(serving(shlex.split(words), key, admin_key))) is None:
        raise BenchError(f"penstock serve {words} did not start; it has said why")
    target = Target(base_url(url), key, Endpoint.CHAT, ignore_eos=True)
    return Contender(words, target, MetricsSource.of(target.base_url, admin_key))


def config_of(contender: Contender, workload: Workload, requests: int) -> BenchConfig:
    return BenchConfig(
        target=contender.target,
        model=None,
        workload=workload,
        load=ClosedLoop(1),  # `plan_runs` sets it, and the warm-up
        num_requests=requests,
        num_warmup=0,
        seed=0,
        timeout_s=TIMEOUT_S,
        metrics=contender.metrics,
    )


def drive(planned: Sequence[PlannedRun], *, shows_progress: bool) -> list[Run]:
    """Raises BenchError: also when a request failed, since the others were faster for it."""
    runs = []
    with progress_bars(len(planned), enabled=shows_progress) as begin:
        for run in run_all(planned, begin):
            failures = [record.failure for record in run.result.records if record.failure is not None]
            if failures:
                raise BenchError(f"{len(failures)} requests failed: {failures[0].reason} {failures[0].detail}")
            runs.append(run)
    return runs


def measured(runs: Sequence[Run]) -> tuple[Measured, ...]:
    return tuple(Measured.of(run, options.slo(None, None, None)) for run in runs)


if __name__ == "__main__":
    options.standalone(compare)
