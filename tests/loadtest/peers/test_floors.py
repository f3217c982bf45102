"""What a machine allows a model, by hand; padding of one mixed batch; gaps beside a long prompt."""

from __future__ import annotations

import pytest

from loadtest.measure import decode_rate
from loadtest.peers.disturbance import of
from loadtest.peers.floors import RowsRoofline
from loadtest.peers.padding import mixed_waste
from loadtest.records import BenchError, Failure, PlannedRequest, RequestRecord, TokenUsage

FACTS = RowsRoofline(
    parameters=1e6,
    weight_bytes=2e6,
    kv_bytes_per_token=1e3,
    bytes_per_s=1e9,
    flop_per_s=1e12,
    rates={1: 1e9, 16: 4e9, 512: 1e12},
    body=7e5,
)


def record(start: float, times: list[float], prompt: int = 10) -> RequestRecord:
    planned = PlannedRequest("a", prompt, len(times))
    return RequestRecord(planned, start, times[-1], times, TokenUsage(prompt, len(times)))


def test_matrix_products_count_at_their_rows() -> None:
    assert FACTS.step_s(1, 0) == pytest.approx(2e-3)  # the weights: 2 ms, the arithmetic as long
    assert FACTS.step_s(16, 0) == pytest.approx(8e-3)  # 3.2e7 operations at 4e9 a second
    assert FACTS.step_s(17, 0) == pytest.approx(2e-3)  # the next measured rate
    assert FACTS.step_s(16, 1000) == pytest.approx(18e-3)  # 16,000 tokens of KV
    assert FACTS.flop_per_s_at(9999) == 1e12


def test_a_prompt_needs_the_head_once() -> None:
    assert FACTS.prefill_s(100) == pytest.approx(2 * 7e5 * 100 / 1e12)


def test_decoding_counts_while_all_are_answered() -> None:
    first, second = record(0, [1.0, 2.0, 3.0, 4.0]), record(0, [2.0, 2.5, 3.0, 3.5, 5.0])
    assert decode_rate([first, second]) == pytest.approx((2 + 3) / 2)  # from 2 to 4
    assert decode_rate([record(0, [1.0, 2.0]), record(2, [3.0, 4.0])]) is None
    assert decode_rate([]) is None


def test_one_mixed_batch_is_as_long_as_its_longest() -> None:
    """At 1 s lengths are 11 and 31, at 2 s 12 and 32: 20 of 42, then 20 of 44, are added."""
    together = [record(0, [1.0, 2.0], prompt=10), record(0, [1.0, 2.0], prompt=30)]
    assert mixed_waste(together) == pytest.approx((20 + 20 + 20 + 20) / (42 + 42 + 44 + 44))
    assert mixed_waste([record(0, [1.0, 2.0]), record(2, [3.0, 4.0])]) == 0
    assert mixed_waste([]) == 0


def test_gaps_before_and_beside_a_long_prompt() -> None:
    streams = [record(0, [1.0, 1.1, 1.2, 1.3, 1.8, 2.4, 2.5]), record(0, [1.0, 1.1, 1.2, 1.3, 1.8, 2.4, 2.5])]
    found = of(streams, record(1.35, [2.3]))
    assert found.calm_s == pytest.approx(0.1)
    assert found.disturbed_s == pytest.approx(0.6)
    assert found.ratio == pytest.approx(6)
    assert found.long_ttft_s == pytest.approx(0.95)


def test_streams_that_had_ended_tell_nothing() -> None:
    with pytest.raises(BenchError, match="did not run"):
        of([record(0, [1.0, 1.1])], record(2.0, [3.0]))
    failed = RequestRecord(PlannedRequest("a", 1, 1), 0, 1, failure=Failure("refused"))
    with pytest.raises(BenchError, match="refused"):
        of([record(0, [1.0, 1.1])], failed)
