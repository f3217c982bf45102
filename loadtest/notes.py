"""What a reader must know before trusting the numbers of a run."""

from loadtest.figures import Measured
from loadtest.loads import ClosedLoop
from loadtest.traces import TraceWorkload

BUSY_CPU_SHARE = 0.8
LATE_S = 0.05  # of the 99th percentile


def notes_of(measured: Measured) -> list[str]:
    result, summary = measured.run.result, measured.summary
    warmup_failed = sum(record.failure is not None for record in result.warmup)
    found = [
        (result.interrupted, "Interrupted: these are the requests that had ended by then."),
        (warmup_failed, f"{warmup_failed} of {len(result.warmup)} warm-up requests failed."),
        (summary.num_failed, f"{summary.num_failed} of {len(result.records)} requests failed at {measured.run.load}."),
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
        *_late(measured),
        *_cut(measured),
    ]
    return [text for holds, text in found if holds]


def _late(measured: Measured) -> list[tuple[bool, str]]:
    late = measured.summary.lateness_s
    if late is None or isinstance(measured.run.load, ClosedLoop):
        return []
    words = f"The generator sent 1 % of the requests more than {late.p99 * 1000:,.0f} ms late; latencies include it."
    return [(late.p99 > LATE_S, words)]


def _cut(measured: Measured) -> list[tuple[bool, str]]:
    config = measured.run.plan.config
    if not isinstance(config.workload, TraceWorkload):
        return []
    cut = config.workload.num_cut(config.num_requests)
    return [(cut > 0, f"{cut} of the {config.num_requests} rows of the trace were cut at the bounds given.")]
