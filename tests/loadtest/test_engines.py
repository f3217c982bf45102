"""Servers side by side: the runs alternate, and what is printed are ratios to the first."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from loadtest import engines
from loadtest.engines import compare

APP = typer.Typer()
APP.command()(compare)
SMALL = ("--requests", "4", "--concurrency", "2", "--input-tokens", "5", "--output-tokens", "4")


@pytest.fixture
def started(server: Any, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What was asked to be served; all of it is the same server."""
    seen: list[list[str]] = []

    @contextmanager
    def serving(arguments: Sequence[str], key: str, admin_key: str) -> Iterator[str | None]:
        assert key != admin_key
        seen.append(list(arguments))
        yield server.url

    monkeypatch.setattr(engines, "serving", serving)
    return seen


def test_all_are_driven_in_turns(server: Any, started: list[list[str]], tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    result = CliRunner().invoke(
        APP, ["models/a --dtype float32", "b --engine onnx", "--rounds", "2", *SMALL, "--json", str(path)]
    )
    assert result.exit_code == 0, result.output
    assert started == [["models/a", "--dtype", "float32"], ["b", "--engine", "onnx"]]
    report = json.loads(path.read_text())
    runs = [(run["subject"], run["repetition"], run["seed"]) for run in report["runs"]]
    assert runs == [(0, 0, 0), (1, 0, 0), (0, 1, 1), (1, 1, 1)]
    (ratio,) = report["comparison"]
    assert (ratio["subject"], ratio["figures"]["output_tokens_per_s"]["count"]) == (1, 2)
    for word in ("A: models/a --dtype float32", "B: b --engine onnx", "TTFT", "B / A"):
        assert word in result.stdout
    keys = [run["base_url"] for run in report["runs"]]
    assert len(set(keys)) == 1


def test_padding_is_read_around_every_run(server: Any, started: list[list[str]], tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    CliRunner().invoke(APP, ["a", "b", "--rounds", "1", *SMALL, "--json", str(path)])
    runs = json.loads(path.read_text())["runs"]
    assert [run["engine"]["steps"] for run in runs] == [10, 10]


def test_servers_that_run_already(server: Any, tmp_path: Path) -> None:
    result = CliRunner().invoke(APP, [server.url, f"{server.url}/v1", "--rounds", "1", *SMALL])
    assert result.exit_code == 0, result.output
    assert "B / A" in result.stdout


def test_a_failed_request_is_no_comparison(server: Any, started: list[list[str]], monkeypatch: Any) -> None:
    original = engines.config_of
    monkeypatch.setattr(engines, "config_of", lambda *args: replace(original(*args), model="cut"))
    result = CliRunner().invoke(APP, ["a", "b", "--warmup", "0", *SMALL])
    assert result.exit_code == 1
    assert "4 requests failed: cut stream" in result.output


def test_one_server_is_no_comparison() -> None:
    result = CliRunner().invoke(APP, ["a"])
    assert result.exit_code == 1
    assert "name another" in result.output


def test_a_server_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def serving(arguments: Sequence[str], key: str, admin_key: str) -> Iterator[str | None]:
        yield None

    monkeypatch.setattr(engines, "serving", serving)
    result = CliRunner().invoke(APP, ["a", "b"])
    assert result.exit_code == 1
    assert "penstock serve a did not start" in result.output
