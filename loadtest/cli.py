"""`penstock bench URL`: also runs alone, as `python -m loadtest.cli URL`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from loadtest import options
from loadtest.client import Endpoint, Target, base_url
from loadtest.figures import Measured
from loadtest.loads import Load
from loadtest.measure import SLO
from loadtest.options import Levels, WorkloadOptions, choose_loads, num_warmup, numbers
from loadtest.progress import progress_bars
from loadtest.records import BenchError
from loadtest.results import Report
from loadtest.roofline import Roofline
from loadtest.runner import BenchConfig
from loadtest.server_metrics import MetricsSource
from loadtest.sweep import Run, plan_runs, run_all
from loadtest.writing import EXIT_FAILED, deliver

# Not the variable that the server reads: a bench of somebody else's server must not send it there.
ADMIN_KEY_VARIABLE = "PENSTOCK_BENCH_ADMIN_KEY"


def bench(
    url: Annotated[str, typer.Argument(help="Base URL of any OpenAI-compatible server, with or without /v1.")],
    model: Annotated[str | None, typer.Option(help="Model to ask for. Unset: the server's first.")] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar=["PENSTOCK_API_KEY", "OPENAI_API_KEY"], help="Sent as a bearer token."),
    ] = None,
    admin_key: Annotated[
        str | None,
        typer.Option(envvar=ADMIN_KEY_VARIABLE, help="Of a Penstock: its /metrics tell batch sizes and padding."),
    ] = None,
    concurrency: options.Concurrencies = None,
    rate: Annotated[
        Levels | None,
        typer.Option(
            parser=numbers, metavar="R[,R...]", help="Open loop: requests that arrive a second, answered or not."
        ),
    ] = None,
    burstiness: Annotated[
        float | None,
        typer.Option(min=0.001, help="Of --rate: the shape of the Gamma distribution of gaps. Unset: 1, Poisson."),
    ] = None,
    trace_speed: Annotated[
        Levels | None,
        typer.Option(parser=numbers, metavar="X[,X...]", help="Open loop: a trace's own arrivals, X times as fast."),
    ] = None,
    requests: options.Requests = 128,
    warmup: options.Warmup = None,
    repeat: options.Repeat = 1,
    workload: options.Name = None,
    input_tokens: options.InputTokens = None,
    output_tokens: options.OutputTokens = None,
    prefix_tokens: options.PrefixTokens = None,
    prefixes: options.Prefixes = None,
    trace: options.TraceFile = None,
    trace_scale: options.TraceScale = None,
    token_ids: options.TokenIds = False,
    endpoint: Annotated[Endpoint, typer.Option(help="Which endpoint to drive.")] = Endpoint.CHAT,
    seed: Annotated[int, typer.Option(help="The same seed sends the same requests.")] = 0,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds a request may take in all.")] = 600.0,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Ask for exactly max_tokens; not every server knows it.")
    ] = False,
    slo_ttft_ms: Annotated[float | None, typer.Option(min=0, help="Goodput: bound on TTFT.")] = None,
    slo_tpot_ms: Annotated[float | None, typer.Option(min=0, help="Goodput: bound on TPOT.")] = None,
    slo_e2el_ms: Annotated[float | None, typer.Option(min=0, help="Goodput: bound on E2EL.")] = None,
    roofline: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Facts from python -m loadtest.machine, to compare with.")
    ] = None,
    json_file: options.JSONFile = None,
    html_file: options.HTMLFile = None,
    no_progress: Annotated[bool, typer.Option("--no-progress", help="No progress bar.")] = False,
) -> None:
    """Drive an OpenAI-compatible server, at one load or a sweep of them; print TTFT, ITL, TPOT and throughput.

    Exits 1 when the server cannot be used or any request failed.
    """
    slo = options.slo(slo_ttft_ms, slo_tpot_ms, slo_e2el_ms)
    sizes = (input_tokens, output_tokens, prefix_tokens, prefixes)
    try:
        options.check_writable(json_file, html_file)
        facts = Roofline.read(roofline) if roofline else None
        target = Target(base_url(url), _stripped(api_key), endpoint, ignore_eos)
        chosen = WorkloadOptions(workload, *sizes, trace, trace_scale, token_ids).build()
        loads = choose_loads(concurrency, rate, burstiness, trace_speed, chosen)
        metrics = MetricsSource.of(target.base_url, key) if (key := _stripped(admin_key)) else None
        config = BenchConfig(target, model, chosen, loads[0], requests, 0, seed, timeout, metrics=metrics)
        done = _run(config, loads, warmup, repeat, shows_progress=not no_progress)
    except BenchError as error:
        typer.echo(f"penstock bench: {error}", err=True)
        raise typer.Exit(EXIT_FAILED) from None
    report = _report(done.runs, slo, facts)
    status = deliver(report, json_file, html_file)
    if done.error is not None:
        typer.echo(f"penstock bench: {done.error}; what was measured before is kept", err=True)
    raise typer.Exit(status if done.error is None else EXIT_FAILED)


@dataclass(frozen=True, slots=True)
class _Done:
    """The finished runs, at least one, and what ended the sweep early."""

    runs: list[Run]
    error: BenchError | None = None


def _run(config: BenchConfig, loads: list[Load], warmup: int | None, repeat: int, *, shows_progress: bool) -> _Done:
    """Raises BenchError when nothing was measured."""
    planned = plan_runs([config], loads, repeat, lambda load: num_warmup(load, warmup))
    runs: list[Run] = []
    with progress_bars(len(planned), enabled=shows_progress) as begin:
        try:
            runs.extend(run_all(planned, begin))
        except BenchError as error:
            if not runs:
                raise
            return _Done(runs, error)
    return _Done(runs)


def _report(runs: list[Run], slo: SLO, facts: Roofline | None) -> Report:
    measured = tuple(Measured.of(run, slo, facts) for run in runs)
    workload = runs[0].plan.config.workload
    return Report(f"{runs[0].result.model}: {workload.name} workload", (_subject(runs[0]),), measured, slo)


def _subject(run: Run) -> str:
    target = run.plan.config.target
    return f"{run.result.model} at {target.shown_url} ({target.endpoint})"


def _stripped(key: str | None) -> str | None:
    return (key or "").strip() or None


if __name__ == "__main__":
    options.standalone(bench)
