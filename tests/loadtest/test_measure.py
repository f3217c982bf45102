import pytest

from loadtest.measure import (
    SLO,
    Distribution,
    distribution,
    e2el_s,
    itl_s,
    meets,
    percentile,
    summarize,
    tpot_s,
    ttft_s,
)
from loadtest.records import Failure, PlannedRequest, RequestRecord, TokenUsage

PLANNED = PlannedRequest("a b", 2, 8)


def record(
    start: float,
    times: list[float],
    end: float,
    usage: TokenUsage | None = None,
    failure: Failure | None = None,
) -> RequestRecord:
    return RequestRecord(PLANNED, start, end, times, usage, failure)


# 5 tokens in 3 events: TTFT 1, ITL 1 and 2, E2EL 5, TPOT (5 - 1) / (5 - 1) = 1
FIVE_TOKENS = record(10.0, [11.0, 12.0, 14.0], 15.0, TokenUsage(20, 5))
# no usage: 3 events are 3 tokens, TTFT 0.5, ITL 0.5 and 0.5, E2EL 2.5, TPOT 2 / 2 = 1
NO_USAGE = record(12.0, [12.5, 13.0, 13.5], 14.5)
FAILED = record(11.0, [12.0], 20.0, failure=Failure("timeout"))
EMPTY = record(10.0, [], 11.0, TokenUsage(4, 1))


def test_one_request() -> None:
    assert ttft_s(FIVE_TOKENS) == 1.0
    assert itl_s(FIVE_TOKENS) == [1.0, 2.0]
    assert e2el_s(FIVE_TOKENS) == 5.0
    assert tpot_s(FIVE_TOKENS) == 1.0


def test_events_stand_for_tokens_without_usage() -> None:
    assert NO_USAGE.output_tokens == 3
    assert tpot_s(NO_USAGE) == 1.0


def test_a_usage_of_zero_is_not_believed_against_events() -> None:
    assert record(0.0, [1.0, 2.0], 3.0, TokenUsage(4, 0)).output_tokens == 2


def test_one_token_has_no_tpot_and_no_itl() -> None:
    single = record(0.0, [1.0], 1.5, TokenUsage(4, 1))
    assert tpot_s(single) is None
    assert itl_s(single) == []


def test_an_empty_answer_has_no_ttft() -> None:
    assert ttft_s(EMPTY) is None
    assert tpot_s(EMPTY) is None


@pytest.mark.parametrize(("percent", "expected"), [(0, 1.0), (25, 1.75), (50, 2.5), (90, 3.7), (100, 4.0)])
def test_percentile_interpolates(percent: float, expected: float) -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], percent) == pytest.approx(expected)


def test_percentile_of_one_sample() -> None:
    assert percentile([7.0], 99) == 7.0


def test_distribution() -> None:
    shape = distribution([4.0, 1.0, 3.0, 2.0])
    assert isinstance(shape, Distribution)
    assert (shape.count, shape.mean, shape.p50, shape.max) == (4, 2.5, 2.5, 4.0)
    assert [shape.p90, shape.p99] == pytest.approx([3.7, 3.97])
    assert (shape.curve[0], shape.curve[10], shape.curve[-1]) == (1.0, 2.5, 4.0)
    assert distribution([]) is None


def test_summary_by_hand() -> None:
    summary = summarize([FIVE_TOKENS, NO_USAGE])
    assert summary.duration_s == 5.0  # 10 to 15
    assert summary.num_completed == 2
    assert summary.output_tokens == 8
    assert summary.output_tokens_per_s == pytest.approx(1.6)
    assert summary.requests_per_s == pytest.approx(0.4)
    assert summary.usage_missing == 1
    assert summary.prompt_tokens is None
    assert summary.total_tokens_per_s is None
    assert summary.ttft_s is not None
    assert summary.ttft_s.mean == pytest.approx(0.75)
    assert summary.itl_s is not None
    assert (summary.itl_s.count, summary.itl_s.mean, summary.itl_s.max) == (4, 1.0, 2.0)
    assert summary.tpot_s is not None
    assert summary.tpot_s.mean == 1.0
    assert summary.goodput_per_s is None


def test_failures_count_in_the_time_and_nowhere_else() -> None:
    summary = summarize([FIVE_TOKENS, FAILED, FAILED])
    assert summary.duration_s == 10.0  # 10 to 20
    assert (summary.num_completed, summary.num_failed) == (1, 2)
    assert summary.failures == {"timeout": 2}
    assert summary.output_tokens_per_s == pytest.approx(0.5)
    assert summary.prompt_tokens == 20
    assert summary.total_tokens_per_s == pytest.approx(2.5)
    assert summary.itl_s is not None
    assert summary.itl_s.count == 2


def test_failures_come_most_frequent_first() -> None:
    other = record(0.0, [], 1.0, failure=Failure("cut stream"))
    assert list(summarize([other, FAILED, FAILED]).failures.items()) == [("timeout", 2), ("cut stream", 1)]


def test_empty_answers_are_counted_apart() -> None:
    summary = summarize([EMPTY, FIVE_TOKENS])
    assert (summary.num_completed, summary.num_empty) == (2, 1)
    assert summary.ttft_s is not None
    assert summary.ttft_s.count == 1
    assert summary.e2el_s is not None
    assert summary.e2el_s.count == 2


def test_nothing_at_all() -> None:
    summary = summarize([])
    assert (summary.duration_s, summary.requests_per_s, summary.ttft_s) == (0.0, 0.0, None)


@pytest.mark.parametrize(
    ("slo", "expected"),
    [
        (SLO(ttft_s=1.0), True),
        (SLO(ttft_s=0.9), False),
        (SLO(tpot_s=1.0), True),
        (SLO(tpot_s=0.5), False),
        (SLO(e2el_s=5.0), True),
        (SLO(e2el_s=4.0), False),
        (SLO(ttft_s=2.0, e2el_s=4.0), False),
        (SLO(), True),
    ],
)
def test_meets(slo: SLO, expected: bool) -> None:
    assert meets(FIVE_TOKENS, slo) is expected


def test_what_was_in_flight() -> None:
    """E2EL 5 and 2.5 s in 5 s: 1.5 at a time."""
    assert summarize([FIVE_TOKENS, NO_USAGE]).in_flight == 1.5


def test_times_count_from_when_a_request_was_due() -> None:
    late = RequestRecord(PLANNED, 10.0, 15.0, [12.0], None, None, sent_s=11.5)
    assert (ttft_s(late), e2el_s(late), late.lateness_s) == (2.0, 5.0, 1.5)


def test_an_empty_answer_misses_a_ttft_bound() -> None:
    assert not meets(EMPTY, SLO(ttft_s=9.0))
    assert meets(EMPTY, SLO(tpot_s=0.001))


def test_goodput_counts_requests_that_meet_every_bound() -> None:
    assert summarize([FIVE_TOKENS, NO_USAGE, FAILED], SLO(ttft_s=0.6)).goodput_per_s == pytest.approx(0.1)
    assert summarize([FIVE_TOKENS], SLO()).goodput_per_s is None
