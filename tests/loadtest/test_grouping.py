"""The comparison of groupings, with servers and a Triton that are made up; `make bench-triton` has real ones."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from loadtest import engines
from loadtest.grouping import TritonStats, compare_grouping, mixes
from loadtest.records import BenchError
from loadtest.workloads import Draw, take

APP = typer.Typer()
APP.command()(compare_grouping)


def test_what_is_sent() -> None:
    one, four, any_ = ({r.input_tokens for r in take(mix, 200, Draw(0))} for mix in mixes(400, 20))
    assert (one, four) == ({100}, {100, 200, 300, 400})
    assert min(any_) >= 20
    assert max(any_) <= 400
    assert len(any_) > 50


async def test_triton_s_own_count(server: Any) -> None:
    source = TritonStats(server.url.removeprefix("http://"), "m")
    first, second = await source.read("ok"), await source.read("ok")
    grown = second.since(first)
    assert grown is not None
    assert (grown.sequences, grown.steps, grown.batch_size) == (12, 3, 4)


async def test_a_triton_that_is_away(dead_url: str) -> None:
    with pytest.raises(BenchError, match="/v2/models/m/stats"):
        await TritonStats(dead_url.removeprefix("http://"), "m").read("ok")


def test_three_groupings_make_a_table(server: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    declared: list[dict[str, Any]] = []

    @contextmanager
    def serving(arguments: Sequence[str], key: str, admin_key: str) -> Iterator[str | None]:
        declared.append(tomllib.loads(Path(arguments[1]).read_text()))
        yield server.url

    monkeypatch.setattr(engines, "serving", serving)
    files = ["--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html")]
    where = ["--triton-http", server.url.removeprefix("http://"), "--model", 'm"x', "--tokenizer", "dir"]
    small = ["--requests", "3", "--concurrency", "2", "--rounds", "1"]
    result = CliRunner().invoke(APP, [*where, *small, *files])
    assert result.exit_code == 0, result.output
    models = [config["models"][0] for config in declared]
    assert [model["options"] for model in models] == [
        {"reload": False, "group_by_length": False},
        {"reload": False, "max_padding_waste": 0},
        {"reload": False, "max_padding_waste": 0.1},
    ]
    assert {(model["engine"], model["name"], model["tokenizer"]) for model in models} == {("triton", 'm"x', "dir")}
    report = json.loads((tmp_path / "r.json").read_text())
    (table,) = report["tables"]
    assert [row[0] for row in table["rows"]] == ["one length", "four lengths", "any from 20 to 400"]
    assert all(cell.startswith("4.0 a batch, ") for row in table["rows"] for cell in row[1:])
    assert {type(body["prompt"][0]) for body in server.bodies} == {int}
    assert "Executed batches and throughput" in (tmp_path / "r.html").read_text()
