"""Figures, their spread, and ratios: numbers by hand."""

from __future__ import annotations

import pytest

from loadtest.comparison import ratios
from loadtest.figures import FIGURES, Spread, points
from loadtest.loads import ClosedLoop
from tests.loadtest.reports import report, run, sweep, versus


def test_figures_of_a_run() -> None:
    """Five tokens in 50 ms, ten milliseconds each."""
    one = run(ClosedLoop(1), 0.01)
    values = {key: figure.value(one) for key, figure in FIGURES.items()}
    assert values["output_tokens_per_s"] == pytest.approx(100)
    assert values["ttft_p50_s"] == values["itl_p99_s"] == pytest.approx(0.01)
    assert values["tpot_p50_s"] == pytest.approx(0.01)
    assert values["goodput_per_s"] == values["requests_per_s"] == pytest.approx(20)
    assert (values["batch_size"], values["padding_waste"], values["in_flight"]) == (4, 0.1, pytest.approx(1))
    assert FIGURES["padding_waste"].show(0.1) == "10.0"
    assert FIGURES["ttft_p50_s"].show(None) == "–"


def test_a_spread_is_of_all_runs_or_of_none() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0, 3)
    assert Spread.of([3.0, None]) is None
    assert Spread.of([]) is None


def test_points_gather_repetitions() -> None:
    gathered = points(sweep().measured)
    assert [(point.load, len(point.runs)) for point in gathered] == [(ClosedLoop(n), 2) for n in (1, 4, 16)]


def test_an_interrupted_run_counts_in_no_figure() -> None:
    load = ClosedLoop(1)
    (point,) = points([run(load, 0.01), run(load, 9.0, repetition=1, interrupted=True)])
    assert len(point.runs) == 1


def test_ratios_pair_what_ran_side_by_side() -> None:
    (ratio,) = ratios(versus().measured)
    assert ratio.subject == 1
    assert ratio.spreads["ttft_p50_s"] == Spread(pytest.approx(3), pytest.approx(2), pytest.approx(4), 2)  # type: ignore[arg-type]
    assert ratio.spreads["output_tokens_per_s"].high == pytest.approx(1 / 2)


def test_a_round_that_one_did_not_finish_is_no_ratio() -> None:
    load = ClosedLoop(1)
    assert ratios([run(load, 0.01), run(load, 0.02, subject=1, interrupted=True)]) == []
    assert report(run(load, 0.01)).ratios == []
