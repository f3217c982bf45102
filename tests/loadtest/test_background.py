"""What a batch does to others: measured against a real server, and told in ratios of pairs."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.background import Part, Plan, measure, report
from loadtest.client import Target, base_url
from loadtest.records import BenchError, Failure, PlannedRequest, RequestRecord
from tests.penstock_process import API_KEY, FAKE_MODEL, UNLIMITED, PenstockProcess


def record(start: float, *times: float) -> RequestRecord:
    return RequestRecord(PlannedRequest("x", 1, 4), start, times[-1], list(times))


def test_a_part_has_its_percentiles() -> None:
    part = Part.of([record(0.0, 1.0, 1.5, 2.5), record(10.0, 13.0, 13.5)])
    assert part.ttft == pytest.approx((2.0, 2.9))
    assert part.itl == pytest.approx((0.5, 0.95))


def test_a_failed_request_is_no_figure() -> None:
    failed = RequestRecord(PlannedRequest("x", 1, 4), 0.0, 1.0, failure=Failure("HTTP 500"))
    with pytest.raises(BenchError, match="1 requests failed"):
        Part.of([failed, record(0.0, 1.0)])


def test_the_ratio_is_of_the_pairs() -> None:
    def part(scale: float) -> Part:
        return Part((0.010 * scale, 0.020 * scale), (0.001 * scale, 0.002 * scale))

    lines = report([(part(1), part(1.1)), (part(10), part(10)), (part(1), part(1.2))]).splitlines()
    assert len(lines) == 5
    assert all("1.10   1.00 to 1.20" in line for line in lines[1:])


async def test_against_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with PenstockProcess(tmp_path, FAKE_MODEL + UNLIMITED) as server:
        target = Target(base_url(server.base_url), API_KEY, ignore_eos=True)
        rounds = await measure(target, None, Plan(1, 6, 50.0, 4, 4))
        assert len(rounds) == 1
        assert [batch.status for batch in server.sdk().batches.list()] == ["cancelled"]
    assert "round 1: TTFT" in capsys.readouterr().out
