"""Options that the commands of this room share, and what they mean together."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from loadtest.loads import ClosedLoop, GammaArrivals, Load, TraceArrivals
from loadtest.measure import SLO
from loadtest.records import BenchError
from loadtest.traces import TraceWorkload, read_trace
from loadtest.workloads import Drawn, RequestSize, SharedPrefix, Workload, WorkloadName

DEFAULT_SIZES = {
    WorkloadName.CHAT: RequestSize(1024, 1024),
    WorkloadName.FIXED: RequestSize(128, 128),
    WorkloadName.UNIFORM: RequestSize(1024, 1024),
    WorkloadName.SHARED_PREFIX: RequestSize(512, 128),
}
WARMUP_OF_OPEN_LOOPS = 8
DEFAULT_CONCURRENCY = 16


class Levels(tuple[float, ...]):
    """What a sweep goes through. A class of its own, since a list would be an option given several times."""


def numbers(text: str) -> Levels:
    """`1,4,16`. Raises typer.BadParameter."""
    try:
        values = Levels(map(float, text.split(",")))
    except ValueError:
        values = Levels()
    if not values or any(not 0 < value < float("inf") for value in values):
        raise typer.BadParameter(f"expected numbers above 0 with commas between them, got {text!r}")
    if len(set(values)) < len(values):
        raise typer.BadParameter(f"the same number twice in {text!r}; to run each several times there is --repeat")
    return values


def integers(text: str) -> Levels:
    """As `numbers`, whole ones."""
    values = numbers(text)
    if any(value != int(value) for value in values):
        raise typer.BadParameter(f"expected whole numbers, got {text!r}")
    return Levels(map(int, values))


Concurrencies = Annotated[
    Levels | None,
    typer.Option(
        "--concurrency",
        parser=integers,
        metavar="N[,N...]",
        help="Closed loop: requests in flight at any time. Several: one after another. Unset: 16.",
    ),
]
Requests = Annotated[int, typer.Option(min=1, help="Measured requests a run.")]
Warmup = Annotated[
    int | None,
    typer.Option(min=0, help="Requests before each run, not counted. Unset: as many as are in flight, or 8."),
]
Repeat = Annotated[int, typer.Option(min=1, help="Runs of each load, in turns, each with a seed of its own.")]
Name = Annotated[
    WorkloadName | None, typer.Option(help="How sizes are drawn. Unset: chat, side by side fixed; with --trace, trace.")
]
InputTokens = Annotated[
    int | None,
    typer.Option(min=1, help="Approximate prompt size, or its upper bound where sizes are drawn."),
]
OutputTokens = Annotated[
    int | None, typer.Option(min=1, help="max_tokens of a request, or its upper bound where sizes are drawn.")
]
PrefixTokens = Annotated[
    int | None, typer.Option(min=1, help="shared-prefix: how much of a prompt is shared. Unset: half.")
]
Prefixes = Annotated[int | None, typer.Option(min=1, help="shared-prefix: how many there are. Unset: 4.")]
TraceFile = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="An Azure CSV or a Mooncake JSONL trace.")
]
TraceScale = Annotated[
    float | None, typer.Option(min=1e-6, help="trace: its lengths times this, for a model of less context.")
]
TokenIds = Annotated[
    bool, typer.Option("--token-ids", help="Prompts of exactly so many token ids; needs --endpoint completions.")
]
JSONFile = Annotated[Path | None, typer.Option("--json", dir_okay=False, help="Also write the results to this file.")]
HTMLFile = Annotated[
    Path | None, typer.Option("--html", dir_okay=False, help="Also write a report with plots to this file.")
]


@dataclass(frozen=True, slots=True)
class WorkloadOptions:
    """What was given; None where it was not, so that what means nothing is refused rather than ignored."""

    name: WorkloadName | None
    input_tokens: int | None
    output_tokens: int | None
    prefix_tokens: int | None = None
    prefixes: int | None = None
    trace: Path | None = None
    trace_scale: float | None = None
    token_ids: bool = False

    def build(self) -> Workload:
        """Raises BenchError: what does not belong together, a trace that can't be read."""
        name = self.name or (WorkloadName.TRACE if self.trace else WorkloadName.CHAT)
        self._check(name)
        if name is WorkloadName.TRACE:
            return self._trace()
        default = DEFAULT_SIZES[name]
        size = RequestSize(self.input_tokens or default.input_tokens, self.output_tokens or default.output_tokens)
        if name is WorkloadName.SHARED_PREFIX:
            prefix = self.prefix_tokens or size.input_tokens // 2
            return SharedPrefix(size, prefix, self.prefixes or 4, self.token_ids)
        return Drawn(name, size, self.token_ids)

    def _check(self, name: WorkloadName) -> None:
        if name is WorkloadName.TRACE and self.trace is None:
            raise BenchError("--workload trace: name its file by --trace")
        belongs = {
            "--trace": (self.trace, WorkloadName.TRACE),
            "--trace-scale": (self.trace_scale, WorkloadName.TRACE),
            "--prefix-tokens": (self.prefix_tokens, WorkloadName.SHARED_PREFIX),
            "--prefixes": (self.prefixes, WorkloadName.SHARED_PREFIX),
        }
        for option, (value, workload) in belongs.items():
            if value is not None and name is not workload:
                raise BenchError(f"{option} means nothing to the {name} workload, only to {workload}")

    def _trace(self) -> TraceWorkload:
        assert self.trace is not None
        rows = tuple(read_trace(self.trace))
        scale = self.trace_scale or 1.0
        return TraceWorkload(self.trace.name, rows, scale, self.input_tokens, self.output_tokens, self.token_ids)


def choose_loads(
    concurrency: Levels | None,
    rate: Levels | None,
    burstiness: float | None,
    speed: Levels | None,
    workload: Workload,
) -> list[Load]:
    """Raises BenchError: arrivals are of one kind."""
    given = {"--concurrency": concurrency, "--rate": rate, "--trace-speed": speed}
    if len(named := [name for name, values in given.items() if values]) > 1:
        raise BenchError(f"{' and '.join(named)}: arrivals are of one kind, give one of them")
    if burstiness is not None and not rate:
        raise BenchError("--burstiness means nothing without --rate")
    if speed and not isinstance(workload, TraceWorkload):
        raise BenchError("--trace-speed: only a trace has moments of its own to replay; name one by --trace")
    if rate:
        return [GammaArrivals(each, burstiness or 1.0) for each in rate]
    if speed:
        return [TraceArrivals(each) for each in speed]
    return closed_loops(concurrency)


def closed_loops(concurrency: Levels | None) -> list[Load]:
    return [ClosedLoop(int(each)) for each in concurrency or (DEFAULT_CONCURRENCY,)]


def num_warmup(load: Load, chosen: int | None) -> int:
    if chosen is not None:
        return chosen
    return load.concurrency if isinstance(load, ClosedLoop) else WARMUP_OF_OPEN_LOOPS


def slo(ttft_ms: float | None, tpot_ms: float | None, e2el_ms: float | None) -> SLO:
    return SLO(*(None if bound is None else bound / 1000 for bound in (ttft_ms, tpot_ms, e2el_ms)))


def check_writable(*paths: Path | None) -> None:
    """Before the run, not after it: a result that cannot be kept is a run for nothing. Raises BenchError."""
    for path in paths:
        if path is not None and not os.access(path if path.exists() else path.parent, os.W_OK):
            raise BenchError(f"cannot write {path}")


def standalone(command: Callable[..., None]) -> None:
    """Run one command as a module's own."""
    app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)  # locals hold the key
    app.command()(command)
    app()
