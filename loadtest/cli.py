"""`penstock bench URL`: also runs alone, as `python -m loadtest.cli URL`."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from loadtest.client import Endpoint, Target, base_url
from loadtest.measure import SLO, summarize
from loadtest.records import BenchError, RequestRecord
from loadtest.report import json_report, print_report
from loadtest.runner import BenchConfig, BenchResult, OnProgress, Stage, run_bench
from loadtest.workloads import WORKLOADS, RequestSize, WorkloadName

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def bench(
    url: Annotated[str, typer.Argument(help="Base URL of any OpenAI-compatible server, with or without /v1.")],
    model: Annotated[str | None, typer.Option(help="Model to ask for. Unset: the server's first.")] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar=["PENSTOCK_API_KEY", "OPENAI_API_KEY"], help="Sent as a bearer token."),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight at any time.")] = 16,
    requests: Annotated[int, typer.Option(min=1, help="Measured requests.")] = 128,
    warmup: Annotated[
        int | None,
        typer.Option(min=0, help="Requests before, not counted. Unset: as many as --concurrency."),
    ] = None,
    workload: Annotated[WorkloadName, typer.Option(help="How sizes are drawn.")] = WorkloadName.CHAT,
    input_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Approximate prompt size (fixed) or its upper bound. Unset: 128 (fixed) or 1024."),
    ] = None,
    output_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="max_tokens (fixed) or its upper bound. Unset: 128 (fixed) or 1024."),
    ] = None,
    endpoint: Annotated[Endpoint, typer.Option(help="Which endpoint to drive.")] = Endpoint.CHAT,
    seed: Annotated[int, typer.Option(help="The same seed sends the same requests.")] = 0,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds a request may take in all.")] = 600.0,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Ask for exactly max_tokens; not every server knows it.")
    ] = False,
    slo_ttft_ms: Annotated[float | None, typer.Option(min=0, help="Goodput: bound on TTFT.")] = None,
    slo_tpot_ms: Annotated[float | None, typer.Option(min=0, help="Goodput: bound on TPOT.")] = None,
    slo_e2el_ms: Annotated[float | None, typer.Option(min=0, help="Goodput: bound on E2EL.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", dir_okay=False, help="Also write the results to this file.")
    ] = None,
    no_progress: Annotated[bool, typer.Option("--no-progress", help="No progress bar.")] = False,
) -> None:
    """Drive an OpenAI-compatible server at a fixed concurrency; print TTFT, ITL, TPOT and throughput.

    Exits 1 when the server cannot be used or any request failed.
    """
    slo = SLO(_seconds(slo_ttft_ms), _seconds(slo_tpot_ms), _seconds(slo_e2el_ms))
    try:
        _check_writable(json_file)
        config = BenchConfig(
            target=Target(base_url(url), (api_key or "").strip() or None, endpoint, ignore_eos),
            model=model,
            workload=workload,
            size=_size(workload, input_tokens, output_tokens),
            concurrency=concurrency,
            num_requests=requests,
            num_warmup=concurrency if warmup is None else warmup,
            seed=seed,
            timeout_s=timeout,
        )
        with _progress_bar(config, enabled=not no_progress) as on_progress:
            result = run_bench(config, on_progress)
    except BenchError as error:
        typer.echo(f"penstock bench: {error}", err=True)
        raise typer.Exit(EXIT_FAILED) from None
    raise typer.Exit(_report(result, slo, json_file))


def _report(result: BenchResult, slo: SLO, json_file: Path | None) -> int:
    """Show the result; answers the process's exit code."""
    summary = summarize(result.records, slo)
    print_report(Console(highlight=False), result, summary)
    if json_file is not None:
        text = json.dumps(json_report(result, summary, slo), indent=2)
        json_file.write_text(text + "\n", encoding="utf-8")
    if result.interrupted:
        return EXIT_INTERRUPTED
    return EXIT_FAILED if summary.num_failed else 0


@contextmanager
def _progress_bar(config: BenchConfig, *, enabled: bool) -> Iterator[OnProgress]:
    """On stderr, so that the report alone is on stdout; silent where stderr is no terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(
        *columns,
        TextColumn("{task.fields[failed]}", style="red"),
        console=console,
        transient=True,
        refresh_per_second=4,  # it shares our core
        disable=not (enabled and console.is_terminal),
    )
    totals = {Stage.WARMUP: config.num_warmup, Stage.MEASURED: config.num_requests}
    with bar:
        tasks = {stage: bar.add_task(stage.value, total=total, failed="") for stage, total in totals.items() if total}
        failed = dict.fromkeys(Stage, 0)

        def on_progress(stage: Stage, record: RequestRecord) -> None:
            failed[stage] += record.failure is not None
            words = f"{failed[stage]} failed" if failed[stage] else ""
            bar.update(tasks[stage], advance=1, failed=words)

        yield on_progress


def _size(workload: WorkloadName, input_tokens: int | None, output_tokens: int | None) -> RequestSize:
    default = WORKLOADS[workload].default
    return RequestSize(input_tokens or default.input_tokens, output_tokens or default.output_tokens)


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _check_writable(path: Path | None) -> None:
    """Before the run, not after it: a result that cannot be kept is a run for nothing."""
    if path is not None and not os.access(path if path.exists() else path.parent, os.W_OK):
        raise BenchError(f"cannot write {path}")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)  # locals hold the key
    app.command()(bench)
    app()
