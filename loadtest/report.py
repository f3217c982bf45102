"""A report on the terminal, in milliseconds: one run in full, several as a table."""

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from loadtest.client import shown
from loadtest.comparison import COMPARED
from loadtest.figures import FIGURES, Measured, Spread
from loadtest.loads import ClosedLoop, GammaArrivals, Load, TraceArrivals
from loadtest.measure import Distribution, Summary
from loadtest.records import RequestRecord
from loadtest.results import Report, letter, subject_lines
from loadtest.results import Table as TextTable
from loadtest.runner import BenchResult

SWEPT = ("output_tokens_per_s", "requests_per_s", "goodput_per_s", "ttft_p50_s", "ttft_p99_s", "itl_p50_s", "itl_p99_s")
OF_ENGINE = ("batch_size", "padding_waste", "ungrouped_waste", "roofline_share")


def print_report(console: Console, report: Report) -> None:
    if len(report.measured) == 1:
        (only,) = report.measured
        console.print(Group(_title(only.run.result), "", _latencies(only.summary), "", _totals(only)))
    else:
        _print_several(console, report)
    for table in report.tables:
        console.print(plain_table(table))
    for note in report.notes:
        console.print(Text(note, style="yellow"))
    for one in report.measured:
        if one.summary.failures:
            console.print(_failures(one.run.result.records, one.summary))


def _print_several(console: Console, report: Report) -> None:
    for line in subject_lines(report.subjects):
        console.print(Text(line, style="bold"))
    console.print(_swept(report))
    if report.ratios:
        console.print(_ratios(report))


def _swept(report: Report) -> Table:
    """Medians over the repetitions."""
    keys = [key for key in (*SWEPT, *OF_ENGINE) if any(point.spread(key) for point in report.points)]
    titles = (_title_of(FIGURES[key].label, FIGURES[key].unit) for key in keys)
    several = len(report.subjects) > 1
    table = _compact(_load_title(report), "server" if several else "", "runs", *titles)
    for point in report.points:
        spreads = [(FIGURES[key], point.spread(key)) for key in keys]
        cells = (figure.show(spread.median if spread else None) for figure, spread in spreads)
        table.add_row(_load(point.load), letter(point.subject) if several else "", str(len(point.runs)), *cells)
    return table


def _ratios(report: Report) -> Table:
    """Of each server to the first, with the least and the largest over the rounds."""
    table = _compact(_load_title(report), "ratio", *(_title_of(FIGURES[key].label, "") for key in COMPARED))
    for ratio in report.ratios:
        spreads = (ratio.spreads.get(key) for key in COMPARED)
        cells = ("-" if s is None else _with_range(s) for s in spreads)
        table.add_row(_load(ratio.load), f"{letter(ratio.subject)} / A", *cells)
    return table


def _with_range(spread: Spread) -> str:
    range_ = f"\n{spread.low:.2f}-{spread.high:.2f}" if spread.count > 1 else ""
    return f"{spread.median:.2f}{range_}"


def _load_title(report: Report) -> str:
    return {ClosedLoop: "in\nflight", GammaArrivals: "arriving\nreq/s", TraceArrivals: "speed"}[
        type(report.config.load)
    ]


def _load(load: Load) -> str:
    mix = load.mix if isinstance(load, ClosedLoop) else ""
    return ", ".join(filter(None, (f"{load.level:g}", mix)))


def _compact(*titles: str) -> Table:
    """For eighty columns; the first two hold words, the others numbers."""
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for index, title in enumerate(titles):
        table.add_column(title, justify="left" if index < 2 else "right")
    return table


def _title_of(label: str, unit: str) -> str:
    return "\n".join((*label.split(" "), unit)).rstrip()


def plain_table(text: TextTable) -> Table:
    table = Table(*text.columns, title=text.title, caption=text.note or None, box=box.SIMPLE)
    for row in text.rows:
        table.add_row(*row)
    return table


def _title(result: BenchResult) -> Text:
    config = result.config
    sizes = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in config.workload.describe().items())
    return Text.assemble(
        (result.model, "bold"),
        f" at {shown(config.target.base_url)} ({config.target.endpoint})\n",
        f"{config.workload.name} workload ({sizes}), "
        f"{config.load}, {config.num_requests} requests after {config.num_warmup} warm-up, "
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


def _totals(measured: Measured) -> RenderableType:
    summary, result = measured.summary, measured.run.result
    completed = [record for record in result.records if record.failure is None]
    planned_in = sum(record.planned.input_tokens for record in completed)
    planned_out = sum(record.planned.max_tokens for record in completed)
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    table.add_row("Duration", f"{summary.duration_s:,.2f} s", f"generator: {result.client_cpu_share:.0%} CPU")
    table.add_row("Requests", f"{summary.num_completed:,} completed", f"{summary.num_failed:,} failed")
    table.add_row("Request throughput", f"{summary.requests_per_s:,.2f} /s", f"{summary.in_flight:,.1f} in flight")
    if summary.goodput_per_s is not None:
        table.add_row("Goodput", f"{summary.goodput_per_s:,.2f} /s", "requests that met every SLO")
    table.add_row("Output throughput", f"{summary.output_tokens_per_s:,.1f} tok/s")
    table.add_row("Total throughput", _or_dash(summary.total_tokens_per_s, ",.1f", " tok/s"))
    table.add_row("Prompt tokens", _or_dash(summary.prompt_tokens, ","), f"planned about {planned_in:,}")
    table.add_row("Output tokens", f"{summary.output_tokens:,}", f"at most {planned_out:,}")
    for key in OF_ENGINE:
        if (value := FIGURES[key].value(measured)) is not None:
            table.add_row(FIGURES[key].label, f"{FIGURES[key].show(value)} {FIGURES[key].unit}")
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
