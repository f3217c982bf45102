"""The whole comparison with bare servers in the peers' places: what is asked, written and checked."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from loadtest.client import Endpoint, Target, base_url
from loadtest.peers import bench, floors
from loadtest.peers.cases import cases
from loadtest.peers.contenders import Contender, Library, Spec
from loadtest.peers.entry import enter
from loadtest.peers.floors import Floors, Loopback
from loadtest.peers.model import make
from loadtest.peers.places import Places
from loadtest.peers.processes import Process, free_port
from loadtest.records import BenchError
from tests.loadtest.peers.tiny import SHAPE, write_tokenizer

APP = typer.Typer()
APP.command()(bench.main)
FLOORS = Floors(1e9, {"bfloat16": {1: 1e9, 512: 1e10}, "int8": {}}, Loopback(1e4, 1e-3))
SCRIPT = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    if asked == {"die": 1}:
        sys.exit("it has had enough")
    sizes = asked["mix"][1] if "mix" in asked else []
    print(json.dumps({"requests": [[0.0, [0.1 * (i + 1) for i in range(out)]] for _, out in sizes]}), flush=True)
"""


def raw(places: Places, stack: ExitStack) -> Contender:
    port = free_port()
    command = [sys.executable, "-m", "loadtest.peers.loopback", str(port)]
    process = Process(command, places.log(f"raw-{port}"), {})
    stack.callback(process.end)
    process.wait_until_healthy(f"http://127.0.0.1:{port}/v1/models", {})
    return Contender(process, Target(base_url(f"http://127.0.0.1:{port}"), None, Endpoint.COMPLETIONS))


def library(places: Places, stack: ExitStack) -> Contender:
    process = Process([sys.executable, "-c", SCRIPT], places.log("library"), {}, talks=True)
    stack.callback(process.end)
    return Library(process, Target(base_url("127.0.0.1:9"), endpoint=Endpoint.COMPLETIONS))


def absent(places: Places, stack: ExitStack) -> Contender:
    raise BenchError("it is not installed")


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    specs = [
        Spec("penstock-bf16", "us", "bfloat16", 2, raw),
        Spec("llama-bf16", "them", "bfloat16", 2, library),
        Spec("llama-server-bf16", "none", "bfloat16", 2, absent),
    ]
    monkeypatch.setattr(bench, "SPECS", {spec.name: spec for spec in specs})
    monkeypatch.setattr(floors, "measure", lambda places: FLOORS)
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    make(tmp_path / "peers" / "model", tokenizer, SHAPE)
    return ["--tokenizer", str(tokenizer), "--folder", str(tmp_path / "peers"), "--quick"]


def test_all_are_asked_the_same_and_compared(arguments: list[str], tmp_path: Path) -> None:
    path, page = tmp_path / "r.json", tmp_path / "r.html"
    result = CliRunner().invoke(APP, [*arguments, "--json", str(path), "--html", str(page)])
    assert result.exit_code == 0, result.output
    report = json.loads(path.read_text())
    asked: dict[Any, list[int]] = {}
    for run in report["runs"]:
        asked.setdefault((run["load"]["mix"], run["load"]["concurrency"]), []).append(run["summary"]["output_tokens"])
    assert {key: counts[0] for key, counts in asked.items()} == {
        ("fixed", 1): 32, ("fixed", 4): 128, ("fixed", 16): 512, ("chat", 16): asked["chat", 16][1], ("prompt", 1): 4
    }  # fmt: skip
    assert all(counts[0] == counts[1] for counts in asked.values())
    assert "penstock-bf16 / llama-bf16, 16 concurrent, chat: output tok/s" in report["ratios"]
    assert report["peak_rss_bytes"]["penstock-bf16"] > 2**20
    assert "llama-server-bf16 took no part: it is not installed" in result.output
    assert "Speed over that of its peers" in page.read_text()
    again = CliRunner().invoke(APP, [*arguments, "--compare", str(path), "--tolerance", "1e9"])
    assert again.exit_code == 0, again.output
    document = json.loads(path.read_text())
    document["ratios"] = {name: each | {"median": 1e9} for name, each in document["ratios"].items()}
    path.write_text(json.dumps(document))
    worse = CliRunner().invoke(APP, [*arguments, "--compare", str(path)])
    assert worse.exit_code == 1
    assert f"worse than {path}: penstock-bf16 / llama-bf16" in worse.output


def test_without_a_tokenizer(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "peers" / "model" / "config.json").unlink()
    result = CliRunner().invoke(APP, ["--tokenizer", str(tmp_path), *arguments[2:]])
    assert result.exit_code == 1
    assert "name a folder with Qwen3's tokenizer" in result.output


def test_an_unknown_contender(arguments: list[str]) -> None:
    result = CliRunner().invoke(APP, [*arguments, "--contender", "x"])
    assert result.exit_code == 1
    assert "x is none of penstock-bf16, llama-bf16" in result.output


def test_a_library_s_times_become_records(tmp_path: Path) -> None:
    case = cases(quick=True)[1]
    with ExitStack() as stack:
        entry = enter(stack, Places(tmp_path), Spec("l", "l", "bfloat16", 2, library))
        records = entry.contender.run(entry.config(case, 5.0), lambda stage, record: None).records
        assert [len(record.content_times_s) for record in records] == [32] * 4
        assert {record.prompt_tokens for record in records} == {64}
        with pytest.raises(BenchError, match="it has had enough"):
            entry.contender.process.ask({"die": 1})


def test_cases_share_no_words() -> None:
    for quick in (False, True):
        found = cases(quick=quick)
        assert len({case.variant for case in found}) == len(found)
        assert all(case.requests == case.concurrency for case in found if case.one_wave)
