"""When requests arrive."""

from __future__ import annotations

import statistics
from itertools import pairwise

import pytest

from loadtest.loads import ClosedLoop, GammaArrivals, TraceArrivals, as_json, offsets_s
from loadtest.records import BenchError, PlannedRequest

MANY = [PlannedRequest("a", 1, 1)] * 20_000


def gaps(load: GammaArrivals) -> list[float]:
    moments = offsets_s(load, MANY, "0")
    assert moments == sorted(moments)
    return [later - earlier for earlier, later in pairwise(moments)]


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_are_of_a_gamma_distribution(burstiness: float) -> None:
    """Its mean is 1 / rate, its variation 1 / sqrt(shape)."""
    drawn = gaps(GammaArrivals(8.0, burstiness))
    assert statistics.mean(drawn) == pytest.approx(1 / 8, rel=0.05)
    assert statistics.stdev(drawn) / statistics.mean(drawn) == pytest.approx(burstiness**-0.5, rel=0.05)


def test_the_seed_decides() -> None:
    load = GammaArrivals(8.0)
    assert offsets_s(load, MANY[:9], "1") == offsets_s(load, MANY[:9], "1")
    assert offsets_s(load, MANY[:9], "1") != offsets_s(load, MANY[:9], "2")


def test_a_trace_is_replayed_at_its_speed() -> None:
    requests = [PlannedRequest("a", 1, 1, at_s) for at_s in (0.0, 3.0, 8.0)]
    assert offsets_s(TraceArrivals(2.0), requests, "0") == [0.0, 1.5, 4.0]


def test_what_is_no_trace_has_no_moments() -> None:
    with pytest.raises(BenchError, match="--trace"):
        offsets_s(TraceArrivals(), MANY[:1], "0")


def test_names() -> None:
    loads = (ClosedLoop(4), GammaArrivals(2.5), GammaArrivals(2.5, 0.5), TraceArrivals(2.0))
    assert [str(load) for load in loads] == [
        "4 concurrent",
        "2.5 requests/s",
        "2.5 requests/s, burstiness 0.5",
        "the trace at 2 times its speed",
    ]
    assert as_json(loads[1]) == {"kind": "gamma", "rate": 2.5, "burstiness": 1.0}
