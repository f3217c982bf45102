"""A run on the terminal (milliseconds) and as JSON (seconds, as the names say)."""

from dataclasses import asdict

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from loadtest.client import shown
from loadtest.measure import SLO, Distribution, Summary
from loadtest.records import RequestRecord
from loadtest.runner import BenchResult

FORMAT_VERSION = 1
BUSY_CPU_SHARE = 0.8


def print_report(console: Console, result: BenchResult, summary: Summary) -> None:
    console.print(Group(_title(result), "", _latencies(summary), "", _totals(result, summary)))
    for note in notes(result, summary):
        console.print(Text(note, style="yellow"))
    if summary.failures:
        console.print(_failures(result.records, summary))


def json_report(result: BenchResult, summary: Summary, slo: SLO) -> dict[str, object]:
    """Plain values only; holds neither the key nor a URL's password."""
    config = result.config
    return {
        "format_version": FORMAT_VERSION,
        "config": {
            "base_url": shown(config.target.base_url),
            "model": result.model,
            "endpoint": config.target.endpoint.value,
            "ignore_eos": config.target.ignore_eos,
            "workload": config.workload.value,
            "input_tokens": config.size.input_tokens,
            "output_tokens": config.size.output_tokens,
            "concurrency": config.concurrency,
            "requests": config.num_requests,
            "warmup": config.num_warmup,
            "seed": config.seed,
            "timeout_s": config.timeout_s,
            "slo": asdict(slo),
        },
        "summary": asdict(summary),
        "client_cpu_share": result.client_cpu_share,
        "interrupted": result.interrupted,
    }


def notes(result: BenchResult, summary: Summary) -> list[str]:
    """What a reader must know before trusting the numbers."""
    warmup_failed = sum(record.failure is not None for record in result.warmup)
    found = [
        (result.interrupted, "Interrupted: these are the requests that had ended by then."),
        (warmup_failed, f"{warmup_failed} of {len(result.warmup)} warm-up requests failed."),
        (summary.num_empty, f"{summary.num_empty} answers held no output; they have no TTFT."),
        (
            summary.usage_missing,
            f"{summary.usage_missing} answers came without usage: their events are counted as tokens.",
        ),
        (
            result.client_cpu_share > BUSY_CPU_SHARE,
            f"The generator used {result.client_cpu_share:.0%} of a core: it may be the bottleneck.",
        ),
        (
            any("context_length_exceeded" in reason for reason in summary.failures),
            "Prompts over the model's context: lower --input-tokens and --output-tokens.",
        ),
    ]
    return [text for holds, text in found if holds]


def _title(result: BenchResult) -> Text:
    config = result.config
    return Text.assemble(
        (result.model, "bold"),
        f" at {shown(config.target.base_url)} ({config.target.endpoint})\n",
        f"{config.workload} workload {config.size.input_tokens}/{config.size.output_tokens}, "
        f"{config.concurrency} concurrent, {config.num_requests} requests after {config.num_warmup} warm-up, "
        f"seed {config.seed}",
    )


def _latencies(summary: Summary) -> Table:
    table = Table("ms")
    for name in ("mean", "p50", "p90", "p99", "max"):
        table.add_column(name, justify="right")
    rows = {"TTFT": summary.ttft_s, "ITL": summary.itl_s, "TPOT": summary.tpot_s, "E2EL": summary.e2el_s}
    for name, samples in rows.items():
        table.add_row(name, *_milliseconds(samples))
    return table


def _milliseconds(samples: Distribution | None) -> list[str]:
    if samples is None:
        return ["-"] * 5
    values = (samples.mean, samples.p50, samples.p90, samples.p99, samples.max)
    return [f"{value * 1000:,.2f}" for value in values]


def _totals(result: BenchResult, summary: Summary) -> RenderableType:
    completed = [record for record in result.records if record.failure is None]
    planned_in = sum(record.planned.input_tokens for record in completed)
    planned_out = sum(record.planned.max_tokens for record in completed)
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    table.add_row("Duration", f"{summary.duration_s:,.2f} s", f"generator: {result.client_cpu_share:.0%} CPU")
    table.add_row("Requests", f"{summary.num_completed:,} completed", f"{summary.num_failed:,} failed")
    table.add_row("Request throughput", f"{summary.requests_per_s:,.2f} /s")
    if summary.goodput_per_s is not None:
        table.add_row("Goodput", f"{summary.goodput_per_s:,.2f} /s", "requests that met every SLO")
    table.add_row("Output throughput", f"{summary.output_tokens_per_s:,.1f} tok/s")
    table.add_row("Total throughput", _or_dash(summary.total_tokens_per_s, ",.1f", " tok/s"))
    table.add_row("Prompt tokens", _or_dash(summary.prompt_tokens, ","), f"planned about {planned_in:,}")
    table.add_row("Output tokens", f"{summary.output_tokens:,}", f"at most {planned_out:,}")
    return table


def _or_dash(value: float | None, spec: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{spec}}{unit}"


def _failures(records: list[RequestRecord], summary: Summary) -> Text:
    """One line a reason: how many, and the first one's words."""
    details: dict[str, str] = {}
    for record in records:
        if record.failure is not None:
            details.setdefault(record.failure.reason, record.failure.detail)
    lines = [
        f"  {count} x {reason}" + (f": {details[reason]}" if details[reason] else "")
        for reason, count in summary.failures.items()
    ]
    return Text("\n".join([f"{summary.num_failed} requests failed:", *lines]), style="red")
