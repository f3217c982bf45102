import json
import signal
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from loadtest.cli import bench
from loadtest.records import BenchError

KEY = "secret-key-0123456789"
APP = typer.Typer()
APP.command()(bench)
SMALL = (
    "--requests",
    "8",
    "--concurrency",
    "2",
    "--warmup",
    "2",
    "--workload",
    "fixed",
    "--input-tokens",
    "5",
)


def run(*arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner(env=env).invoke(APP, [*arguments])


def test_success(server: Any, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    result = run(server.url, *SMALL, "--api-key", KEY, "--json", str(path), "--slo-ttft-ms", "60000")
    assert result.exit_code == 0, result.output
    for word in ("ok at http://127.0.0.1", "TTFT", "ITL", "TPOT", "E2EL", "Output throughput", "Goodput"):
        assert word in result.stdout
    report = json.loads(path.read_text())
    assert report["config"]["slo"]["ttft_s"] == 60
    (only,) = report["runs"]
    assert (only["model"], only["load"]) == ("ok", {"kind": "closed", "concurrency": 2, "mix": ""})
    summary = only["summary"]
    assert (summary["num_completed"], summary["num_failed"]) == (8, 0)
    assert (summary["prompt_tokens"], summary["output_tokens"]) == (8 * 7, 8 * 6)
    assert summary["itl_s"]["count"] <= 8 * 2
    assert len(server.bodies) == 10
    assert len({body["messages"][0]["content"] for body in server.bodies}) == 10  # warm-up shares none
    assert KEY not in path.read_text() + result.output


def test_the_request_as_the_server_sees_it(server: Any) -> None:
    arguments = ("--endpoint", "completions", "--model", "second", "--ignore-eos", "--output-tokens", "9")
    assert run(f"{server.url}/v1/", *SMALL, *arguments).exit_code == 0
    body = server.bodies[0]
    assert (body["model"], body["max_tokens"], body["ignore_eos"]) == ("second", 9, True)
    assert len(body["prompt"].split()) == 5


def test_the_same_seed_sends_the_same_prompts(server: Any) -> None:
    def prompts(seed: str) -> list[str]:
        server.bodies.clear()
        assert run(server.url, *SMALL, "--seed", seed).exit_code == 0
        return sorted(body["messages"][0]["content"] for body in server.bodies)

    assert prompts("1") == prompts("1")
    assert prompts("1") != prompts("2")


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("error-event", "8 x error event server_error: engine died"),
        ("cut", "8 x cut stream"),
        ("reset", "8 x connection lost"),
        ("busy", "8 x HTTP 429 rate_limit_exceeded: slow down"),
        ("not-streaming", "8 x not an event stream"),
    ],
)
def test_failures_are_counted_by_reason(server: Any, model: str, reason: str) -> None:
    result = run(server.url, *SMALL, "--warmup", "0", "--model", model)
    assert result.exit_code == 1
    assert "8 requests failed" in result.stdout
    assert reason in result.stdout


def test_some_failures_are_enough_for_exit_code_1(server: Any) -> None:
    result = run(server.url, *SMALL, "--model", "every-other", "--concurrency", "1")
    assert result.exit_code == 1
    assert "4 x HTTP 503 overloaded" in result.stdout
    assert "1 of 2 warm-up requests failed" in result.stdout


def one_line_error(result: Result) -> str:
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_unreachable(dead_url: str) -> None:
    assert one_line_error(run(dead_url)).startswith(f"penstock bench: cannot reach {dead_url}/v1: ")


def test_refused_key(server: Any, refused_key: str) -> None:
    error = one_line_error(run(server.url, "--api-key", refused_key))
    assert "refused the key" in error
    assert refused_key not in error


@pytest.mark.parametrize("name", ["PENSTOCK_API_KEY", "OPENAI_API_KEY"])
def test_the_key_from_the_environment(server: Any, refused_key: str, name: str) -> None:
    assert "refused the key" in one_line_error(run(server.url, env={name: refused_key + "\n"}))


def test_our_variable_comes_before_the_other(server: Any, refused_key: str) -> None:
    result = run(server.url, *SMALL, env={"PENSTOCK_API_KEY": KEY, "OPENAI_API_KEY": refused_key})
    assert result.exit_code == 0


def test_every_warm_up_refused(server: Any) -> None:
    assert "every warm-up request failed: 2 x HTTP 429" in one_line_error(run(server.url, *SMALL, "--model", "busy"))


def test_a_file_that_cannot_be_written_is_said_before_the_run(server: Any, tmp_path: Path) -> None:
    error = one_line_error(run(server.url, *SMALL, "--json", str(tmp_path / "missing" / "result.json")))
    assert "cannot write" in error
    assert server.bodies == []


def test_bad_arguments() -> None:
    assert run("http://h", "--workload", "other").exit_code == 2
    assert run("http://h", "--concurrency", "0").exit_code == 2
    assert "no http or https URL" in one_line_error(run("ftp://h"))


def test_a_sweep_in_both_files(server: Any, tmp_path: Path) -> None:
    json_file, html_file = tmp_path / "r.json", tmp_path / "r.html"
    arguments = ("--rate", "200,400", "--burstiness", "0.5", "--repeat", "2", "--admin-key", "admin-key-0123456789")
    files = ("--json", str(json_file), "--html", str(html_file))
    small = ("--requests", "4", "--warmup", "1", "--workload", "fixed", "--input-tokens", "5")
    result = run(server.url, *small, *arguments, *files)
    assert result.exit_code == 0, result.output
    report = json.loads(json_file.read_text())
    assert [(r["load"]["rate"], r["seed"]) for r in report["runs"]] == [(200, 0), (400, 0), (200, 1), (400, 1)]
    assert [r["engine"]["steps"] for r in report["runs"]] == [10] * 4
    assert report["loads"][0]["figures"]["output_tokens_per_s"]["count"] == 2
    assert len({body["messages"][0]["content"] for body in server.bodies}) == len(server.bodies)
    assert "requests arriving per second" in html_file.read_text()
    assert "admin-key" not in json_file.read_text() + html_file.read_text() + result.output


def test_a_trace_with_its_own_arrivals(server: Any, tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    rows = "".join(f"2023-11-16 18:15:4{i}.5,{i + 1}0,{i + 1}\n" for i in range(4))
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    arguments = (
        "--trace",
        str(trace),
        "--trace-speed",
        "100",
        "--requests",
        "4",
        "--warmup",
        "0",
        "--input-tokens",
        "30",
    )
    result = run(server.url, *arguments)
    assert result.exit_code == 0, result.output
    assert [body["max_tokens"] for body in server.bodies] == [1, 2, 3, 4]
    assert [len(body["messages"][0]["content"].split()) for body in server.bodies] == [10, 20, 30, 30]
    assert "1 of the 4 rows of the trace were cut" in result.stdout


def test_exact_prompts_are_token_ids(server: Any) -> None:
    assert run(server.url, *SMALL, "--token-ids", "--endpoint", "completions").exit_code == 0
    assert {len(body["prompt"]) for body in server.bodies} == {5}
    assert "--endpoint completions" in one_line_error(run(server.url, *SMALL, "--token-ids"))


def test_a_roofline_beside_the_speed(server: Any, tmp_path: Path) -> None:
    facts = tmp_path / "roofline.toml"
    numbers = {"parameters": 1e6, "weight_bytes": 4e6, "kv_bytes_per_token": 1e3, "bytes_per_s": 1e9, "flop_per_s": 1e9}
    facts.write_text("".join(f"{name} = {value}\n" for name, value in numbers.items()))
    assert "Of the roofline" in run(server.url, *SMALL, "--roofline", str(facts)).stdout
    assert "cannot read" in one_line_error(run(server.url, *SMALL, "--roofline", str(tmp_path / "none")))


def test_a_wrong_admin_key_is_said(server: Any, dead_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtest.server_metrics.NAMES", {"steps": "another_counter"})
    assert "none of Penstock's" in one_line_error(run(server.url, *SMALL, "--admin-key", "admin-key-0123456789"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--rate", "1", "--concurrency", "1"), "arrivals are of one kind"),
        (("--burstiness", "1"), "--burstiness means nothing"),
        (("--trace-speed", "1"), "only a trace has moments"),
        (("--prefixes", "2"), "--prefixes means nothing"),
    ],
)
def test_what_does_not_belong_together(server: Any, arguments: tuple[str, ...], words: str) -> None:
    assert words in one_line_error(run(server.url, *arguments))
    assert server.bodies == []


def test_what_was_measured_before_a_failure_is_kept(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loadtest import sweep

    original = sweep.run_bench

    def run_bench(config: Any, on_progress: Any) -> Any:
        if config.load.concurrency == 2:
            raise BenchError("the server is gone")
        return original(config, on_progress)

    monkeypatch.setattr(sweep, "run_bench", run_bench)
    path = tmp_path / "r.json"
    result = run(server.url, *SMALL, "--concurrency", "1,2", "--json", str(path))
    assert result.exit_code == 1
    assert "the server is gone; what was measured before is kept" in result.stderr
    assert [one["load"]["concurrency"] for one in json.loads(path.read_text())["runs"]] == [1]


def test_the_server_s_own_admin_key_is_not_sent_along(server: Any) -> None:
    env = {"PENSTOCK_ADMIN_KEY": KEY}
    assert run(server.url, *SMALL, env=env).exit_code == 0
    assert server.app.state.scrapes == 0
    assert run(server.url, *SMALL, env={"PENSTOCK_BENCH_ADMIN_KEY": KEY}).exit_code == 0
    assert server.app.state.scrapes == 2


def test_ctrl_c_reports_and_exits_130(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from loadtest.client import LoadClient

    original = LoadClient.send
    sent: list[object] = []

    async def send(self: LoadClient, *args: Any, **kwargs: Any) -> Any:
        sent.append(args)
        if len(sent) == 5:
            signal.raise_signal(signal.SIGINT)
        return await original(self, *args, **kwargs)

    monkeypatch.setattr(LoadClient, "send", send)
    result = run(server.url, *SMALL, "--concurrency", "1")
    assert result.exit_code == 130
    assert "Interrupted" in result.stdout
