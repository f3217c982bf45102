"""Two servers side by side: the runs alternate, and what is printed is B over A."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from loadtest import engines
from loadtest.engines import Ratios, Speed, compare

APP = typer.Typer()
APP.command()(compare)
SMALL = ("--requests", "4", "--concurrency", "2", "--input-tokens", "5", "--output-tokens", "4")


def test_ratios_are_medians_over_the_rounds() -> None:
    a = Speed(tokens_per_s=100, ttft_s=0.1, itl_s=0.01)
    rounds = [(a, Speed(tokens, ttft, 0.01)) for tokens, ttft in ((200, 0.05), (150, 0.2), (5000, 0.1))]
    assert Ratios.of(rounds) == Ratios(tokens_per_s=2, ttft=1, itl=1)


def test_both_are_driven_in_turns(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    driven: list[tuple[str, int]] = []

    @contextmanager
    def serving(arguments: Sequence[str], key: str) -> Iterator[str | None]:
        started.append(list(arguments))
        yield server.url

    measure = engines._measure

    def note(config: Any, seed: int) -> Speed:
        driven.append((config.target.api_key, seed))
        return measure(config, seed)

    monkeypatch.setattr(engines, "serving", serving)
    monkeypatch.setattr(engines, "_measure", note)
    result = CliRunner().invoke(APP, ["models/a --dtype float32", "b --engine onnx", "--rounds", "2", *SMALL])
    assert result.exit_code == 0, result.output
    assert started == [["models/a", "--dtype", "float32"], ["b", "--engine", "onnx"]]
    assert [seed for _, seed in driven] == [0, 0, 1, 1]
    assert [key for key, _ in driven] == [driven[0][0], driven[1][0]] * 2
    assert driven[0][0] != driven[1][0]
    for word in ("tok/s", "TTFT", "ITL", "A1", "B1", "A2", "B2", "B / A"):
        assert word in result.stdout


def test_a_server_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def serving(arguments: Sequence[str], key: str) -> Iterator[str | None]:
        yield None

    monkeypatch.setattr(engines, "serving", serving)
    result = CliRunner().invoke(APP, ["a", "b"])
    assert result.exit_code == 1
    assert "penstock serve a did not start" in result.output
