"""Ratios of made-up runs, and the check that compares them with earlier ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadtest.figures import Measured, Spread
from loadtest.loads import ClosedLoop
from loadtest.peers import regression
from loadtest.peers.ratios import Ratio, Results
from loadtest.peers.regression import Saved
from loadtest.records import BenchError
from tests.loadtest.reports import FACTS, run

NAMES = ("penstock-bf16", "llama-bf16")


def results(*rounds: tuple[float, float], mix: str = "chat") -> Results:
    """Seconds a token of both, by round."""
    runs: list[Measured] = []
    for repetition, pair in enumerate(rounds):
        runs += [run(ClosedLoop(1, mix), s, subject=i, repetition=repetition) for i, s in enumerate(pair)]
    return Results(NAMES, runs)


def test_a_ratio_is_of_runs_of_one_round() -> None:
    (ratio,) = results((0.01, 0.02), (0.02, 0.06)).of_pairs()
    assert ratio.name == "penstock-bf16 / llama-bf16, 1 concurrent, chat: output tok/s"
    assert (ratio.spread.low, ratio.spread.high) == (pytest.approx(2), pytest.approx(3))
    assert ratio.more_is_better


def test_of_a_prompt_the_time_counts() -> None:
    (ratio,) = results((0.01, 0.02), mix="prompt").of_pairs()
    assert ratio.spread.median == pytest.approx(0.5)
    assert not ratio.more_is_better


def test_a_cached_prompt_against_a_cold_one() -> None:
    runs = [run(ClosedLoop(1, mix), s) for mix, s in (("prompt", 0.02), ("cached", 0.005))]
    (ratio,) = Results(NAMES, runs).of_caches()
    assert ratio.spread.median == pytest.approx(0.25)


def test_the_share_of_the_floor() -> None:
    """5 tokens, one each 8 ms; a step of one stream at a context of 10.5 takes 4.0105 ms at least."""
    (ratio,) = Results(NAMES[:1], [run(ClosedLoop(1, "fixed"), 0.008)]).of_floors({"penstock-bf16": FACTS})
    assert ratio.spread.median == pytest.approx(4.0105 / 8)


def ratio(name: str, value: float, *, more_is_better: bool = True) -> Ratio:
    return Ratio(name, Spread(value, value, value, 1), more_is_better)


def test_what_is_worse_by_more_than_the_tolerance() -> None:
    before = {"speed": Saved(2.0, True), "time": Saved(0.5, False), "gone": Saved(1.0, True)}
    now = [ratio("speed", 1.69), ratio("time", 0.58, more_is_better=False), ratio("new", 0.1)]
    assert regression.worse(before, now, 0.15) == ["speed: 2.00 -> 1.69", "time: 0.50 -> 0.58"]
    assert regression.worse(before, now, 0.20) == []


def test_what_is_better_is_not_worse() -> None:
    before = {"speed": Saved(2.0, True), "time": Saved(0.5, False)}
    now = [ratio("speed", 9.0), ratio("time", 0.1, more_is_better=False)]
    assert regression.worse(before, now, 0.0) == []


def test_runs_that_share_nothing_are_no_comparison() -> None:
    with pytest.raises(BenchError, match="no ratio in common"):
        regression.worse({"a": Saved(1.0, True)}, [ratio("b", 1.0)], 0.15)


def test_a_report_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"title": "x", "ratios": regression.as_json([ratio("a", 1.5)])}))
    assert regression.read(path) == {"a": Saved(1.5, True)}
    path.write_text("{}")
    with pytest.raises(BenchError, match="no report of bench-peers"):
        regression.read(path)
