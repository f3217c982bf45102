"""The numbers of a run, as pure functions of its records. Seconds in, seconds out.

Times count from `RequestRecord.start_s`: when the request was sent, or in an open loop was due.
Percentiles interpolate linearly between closest ranks.

- TTFT: start to first event with output.
- ITL: gap between consecutive output events, all requests pooled. An event may carry several tokens,
  so ITL is what a reader sees, not the engine's step.
- E2EL: start to `[DONE]`.
- TPOT: `(E2EL - TTFT) / (output tokens - 1)` of one request, tokens by the server's usage where given;
  where it is not, events stand for tokens.
- Throughput counts tokens of completed requests, over the time from the first start to the last end.
- Goodput: completed requests a second, over the same time, that meet every bound of the SLO.
- Requests in flight: the mean over that time, which is the sum of all E2EL over it (Little's law).
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from loadtest.records import RequestRecord

CURVE_PERCENTS = (*range(0, 100, 5), 99, 100)


@dataclass(frozen=True, slots=True)
class Distribution:
    """A sample's shape; the unit is the sample's."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float
    curve: list[float] = field(repr=False)  # its percentiles at CURVE_PERCENTS


@dataclass(frozen=True, slots=True)
class SLO:
    """Upper bounds a request must meet to count as goodput; None sets no bound."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2el_s: float | None = None

    @property
    def is_set(self) -> bool:
        return any(bound is not None for bound in (self.ttft_s, self.tpot_s, self.e2el_s))


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in numbers. A distribution is None where no request gave a sample.

    `num_empty` answers completed with no output: they have an E2EL but no TTFT. `prompt_tokens` is None,
    and `usage_missing` counts the requests concerned, where the server reported no usage.
    """

    duration_s: float
    num_completed: int
    num_failed: int
    num_empty: int
    failures: dict[str, int]
    prompt_tokens: int | None
    output_tokens: int
    usage_missing: int
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float | None
    goodput_per_s: float | None
    ttft_s: Distribution | None
    itl_s: Distribution | None
    tpot_s: Distribution | None
    e2el_s: Distribution | None
    in_flight: float
    lateness_s: Distribution | None


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Linear interpolation between closest ranks (NumPy's default); `ordered` is sorted, not empty."""
    position = (len(ordered) - 1) * percent / 100
    low, high = ordered[math.floor(position)], ordered[math.ceil(position)]
    return low + (high - low) * (position - math.floor(position))


def distribution(samples: Iterable[float]) -> Distribution | None:
    ordered = sorted(samples)
    if not ordered:
        return None
    p50, p90, p99 = (percentile(ordered, percent) for percent in (50, 90, 99))
    curve = [percentile(ordered, percent) for percent in CURVE_PERCENTS]
    return Distribution(len(ordered), math.fsum(ordered) / len(ordered), p50, p90, p99, ordered[-1], curve)


def ttft_s(record: RequestRecord) -> float | None:
    return record.content_times_s[0] - record.start_s if record.content_times_s else None


def e2el_s(record: RequestRecord) -> float:
    return record.end_s - record.start_s


def tpot_s(record: RequestRecord) -> float | None:
    """None for fewer than two output tokens, which have no time between them."""
    first = ttft_s(record)
    if first is None or record.output_tokens < 2:
        return None
    return (e2el_s(record) - first) / (record.output_tokens - 1)


def itl_s(record: RequestRecord) -> list[float]:
    return [later - earlier for earlier, later in pairwise(record.content_times_s)]


def meets(record: RequestRecord, slo: SLO) -> bool:
    """Every set bound holds. A bound on a TTFT that does not exist is missed; a TPOT needs two tokens."""
    first, per_token = ttft_s(record), tpot_s(record)
    if slo.ttft_s is not None and (first is None or first > slo.ttft_s):
        return False
    if slo.tpot_s is not None and per_token is not None and per_token > slo.tpot_s:
        return False
    return slo.e2el_s is None or e2el_s(record) <= slo.e2el_s


def decode_rate(records: Sequence[RequestRecord]) -> float | None:
    """Tokens a second while all of these requests were being answered; None where there was no such time. Events
    stand for tokens in proportion, where the server put several into one."""
    if not records or any(record.failure is not None or not record.content_times_s for record in records):
        return None
    start = max(record.content_times_s[0] for record in records)
    end = min(record.content_times_s[-1] for record in records)
    if end <= start:
        return None
    tokens = sum(_tokens_between(record, start, end) for record in records)
    return tokens / (end - start)


def _tokens_between(record: RequestRecord, start: float, end: float) -> float:
    events = sum(start < time <= end for time in record.content_times_s)
    return events * record.output_tokens / len(record.content_times_s)


def duration_s(records: Sequence[RequestRecord]) -> float:
    """First start to last end, failures included; 0 without records."""
    if not records:
        return 0.0
    return max(record.end_s for record in records) - min(record.start_s for record in records)


def summarize(records: Sequence[RequestRecord], slo: SLO | None = None) -> Summary:
    completed = [record for record in records if record.failure is None]
    elapsed = duration_s(records)
    output_tokens = sum(record.output_tokens for record in completed)
    prompt_tokens = _prompt_tokens(completed)

    def rate(amount: float) -> float:
        return amount / elapsed if elapsed > 0 else 0.0

    return Summary(
        duration_s=elapsed,
        num_completed=len(completed),
        num_failed=len(records) - len(completed),
        num_empty=sum(not record.content_times_s for record in completed),
        failures=failures_by_reason(records),
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        usage_missing=sum(record.usage is None for record in completed),
        requests_per_s=rate(len(completed)),
        output_tokens_per_s=rate(output_tokens),
        total_tokens_per_s=rate(prompt_tokens + output_tokens) if prompt_tokens is not None else None,
        goodput_per_s=rate(sum(meets(record, slo) for record in completed)) if slo and slo.is_set else None,
        ttft_s=distribution(value for record in completed if (value := ttft_s(record)) is not None),
        itl_s=distribution(gap for record in completed for gap in itl_s(record)),
        tpot_s=distribution(value for record in completed if (value := tpot_s(record)) is not None),
        e2el_s=distribution(e2el_s(record) for record in completed),
        in_flight=rate(sum(e2el_s(record) for record in records)),
        lateness_s=distribution(record.lateness_s for record in records),
    )


def failures_by_reason(records: Iterable[RequestRecord]) -> dict[str, int]:
    """Most frequent first."""
    reasons = Counter(record.failure.reason for record in records if record.failure is not None)
    return dict(reasons.most_common())


def _prompt_tokens(completed: Sequence[RequestRecord]) -> int | None:
    counts = [record.prompt_tokens for record in completed]
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None
