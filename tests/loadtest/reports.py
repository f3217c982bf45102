"""Reports of made-up runs, whose numbers are known."""

from __future__ import annotations

from loadtest.client import Target, base_url
from loadtest.figures import Measured
from loadtest.loads import ClosedLoop, Load
from loadtest.measure import SLO
from loadtest.records import Failure, PlannedRequest, RequestRecord, TokenUsage
from loadtest.results import Report
from loadtest.roofline import Roofline
from loadtest.runner import BenchConfig, BenchResult
from loadtest.server_metrics import EngineCounters
from loadtest.sweep import PlannedRun, Run
from loadtest.workloads import Drawn, RequestSize, WorkloadName

FACTS = Roofline(parameters=1e6, weight_bytes=4e6, kv_bytes_per_token=1e3, bytes_per_s=1e9, flop_per_s=1e11)


def config(load: Load) -> BenchConfig:
    target = Target(base_url("http://test"), "secret-key-0123456789")
    return BenchConfig(target, "m", Drawn(WorkloadName.FIXED, RequestSize(8, 5)), load, 1, 0, 0, 5.0)


def records(token_s: float, failed: int = 0) -> list[RequestRecord]:
    """One answer of five tokens, the first after `token_s`, each after as long; and failed requests."""
    planned = PlannedRequest("a b", 8, 5)
    times = [100 + token_s * (i + 1) for i in range(5)]
    good = RequestRecord(planned, 100.0, times[-1], times, TokenUsage(8, 5))
    bad = RequestRecord(planned, 100.0, 100.0, failure=Failure("<b>refused</b>", "no"))
    return [good, *[bad] * failed]


def run(
    load: Load, token_s: float, *, subject: int = 0, repetition: int = 0, failed: int = 0, interrupted: bool = False
) -> Measured:
    """Of an engine that padded a tenth."""
    engine = EngineCounters(steps=10, sequences=40, attention_cells=100, padding_cells=10)
    result = BenchResult(config(load), "m", [], records(token_s, failed), 0.0, engine, interrupted)
    return Measured.of(Run(PlannedRun(config(load), repetition, subject), result), SLO(ttft_s=1.0), FACTS)


def report(*measured: Measured, subjects: tuple[str, ...] = ("m",)) -> Report:
    return Report("title", subjects, measured, SLO(ttft_s=1.0))


def sweep() -> Report:
    return report(*(run(ClosedLoop(level), 0.01 * level, repetition=r) for r in range(2) for level in (1, 4, 16)))


def versus() -> Report:
    """B takes twice as long in the first round, four times in the second."""
    rounds = ((0, 0.01), (1, 0.02)), ((0, 0.01), (1, 0.04))
    return report(
        *(run(ClosedLoop(2), s, subject=i, repetition=r) for r, pair in enumerate(rounds) for i, s in pair),
        subjects=("one", "<other> & co"),
    )
