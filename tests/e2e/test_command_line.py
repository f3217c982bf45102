"""The command itself: keys that a running server follows, a benchmark, and errors of one line."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.clients import chat, until
from tests.penstock_process import API_KEY, FAKE_MODEL, ROOT, PenstockProcess
from tests.quota.redis_server import RedisServer


def penstock(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    return subprocess.run(
        [sys.executable, "-m", "server.cli", *map(str, arguments)],
        cwd=ROOT,
        env=clean | {"COLUMNS": "200"} | environment,
        capture_output=True,
        text=True,
        timeout=100,
    )


def check_one_line(done: subprocess.CompletedProcess[str], pattern: str) -> None:
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("{")]  # the log
    assert len(lines) == 1, done.stderr
    assert re.search(pattern, lines[0]), lines[0]
    assert lines[0].startswith("penstock: ")
    assert "Traceback" not in done.stderr + done.stdout


# --- keys


def status(server: PenstockProcess, key: str) -> int:
    answer = httpx.post(
        f"{server.base_url}/chat/completions",
        json=chat("echo", "hello", 1),
        headers={"Authorization": f"Bearer {key}"},
    )
    return answer.status_code


async def test_keys(fake: PenstockProcess) -> None:
    where = ("--data-dir", fake.folder / "data")
    made = await asyncio.to_thread(penstock, "keys", "create", "--name", "from the test", *where)
    key = made.stdout.strip()
    assert (made.returncode, key.startswith("sk-pen-")) == (0, True)
    assert await asyncio.to_thread(status, fake, key) == 200  # at once: no server has seen it before
    key_id = key.removeprefix("sk-pen-")[:8]
    listed = await asyncio.to_thread(penstock, "keys", "list", *where)
    assert key_id in listed.stdout
    assert "from the test" in listed.stdout
    assert key not in listed.stdout
    revoked = await asyncio.to_thread(penstock, "keys", "revoke", key_id, *where)
    assert revoked.returncode == 0
    async with asyncio.timeout(5):  # the promise
        await until(lambda: status(fake, key) == 401, "the revocation")
    assert re.search(rf"{key_id}.*revoked", (await asyncio.to_thread(penstock, "keys", "list", *where)).stdout)


def test_a_key_that_may_do_little(fake: PenstockProcess) -> None:
    where = ("--data-dir", fake.folder / "data")
    for scope in (("--model", "other"), ("--admin",)):
        account = ("--account", "admin") if scope == ("--admin",) else ()
        made = penstock("keys", "create", *scope, *account, *where)
        assert made.returncode == 0, made.stderr
        assert status(fake, made.stdout.strip()) in (403, 404)


def test_a_key_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    check_one_line(penstock("keys", "revoke", "nobody00", "--data-dir", tmp_path), "no key has the id nobody00")


# --- bench


def test_bench(fake: PenstockProcess, tmp_path: Path) -> None:
    sizes = ("--requests", "40", "--concurrency", "8", "--input-tokens", "64", "--output-tokens", "32")
    report = tmp_path / "report.json"
    done = penstock("bench", fake.base_url, *sizes, "--json", report, "--no-progress", PENSTOCK_API_KEY=API_KEY)
    assert done.returncode == 0, done.stderr
    for word in ("TTFT", "ITL", "TPOT"):
        assert word in done.stdout
    assert API_KEY not in done.stdout + done.stderr + report.read_text()
    assert json.loads(report.read_text())
    wrong = penstock("bench", fake.base_url, *sizes, "--no-progress", PENSTOCK_API_KEY="sk-wrong-0123456789")
    assert wrong.returncode == 1


# --- starts that fail


def serve(folder: Path, config: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = folder / "penstock.toml"
    path.write_text(config, encoding="utf-8")
    return penstock("serve", "--config", path, "--data-dir", folder / "data", "--port", "0", *arguments)


@pytest.mark.parametrize(
    ("config", "pattern"),
    [
        ("[server", r"penstock\.toml"),
        ("[server]\nprot = 1\n", r"penstock\.toml: server\.prot: "),
        ('[[models]]\nname = "m"\npath = "/no/such/folder"\n', "no such folder"),
        ('[[models]]\nname = "m"\nengine = "fake"\noptions = { nothing = 1 }\n', r"options\.nothing"),
        (FAKE_MODEL + '[server]\ntls_cert = "CERT"\ntls_key = "CERT"\n', r"server\.tls_cert"),
        (FAKE_MODEL + '[server]\nhost = "203.0.113.1"\n', r"203\.0\.113\.1.*can't be listened on"),
    ],
)
def test_what_is_wrong_with_a_start_is_one_line(tmp_path: Path, config: str, pattern: str) -> None:
    garbage = tmp_path / "cert.pem"
    garbage.write_text("this is no certificate")
    check_one_line(serve(tmp_path, config.replace("CERT", str(garbage))), pattern)


def test_a_folder_without_a_model_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    check_one_line(serve(tmp_path, "", str(tmp_path / "empty")), "empty")


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        check_one_line(serve(tmp_path, FAKE_MODEL, "--port", str(port)), f"127.0.0.1:{port}: can't be listened on")


MANY_GATEWAYS = FAKE_MODEL + '[server]\ngateways = 3\nredis_url = "redis://127.0.0.1:1"\n'


def test_a_start_of_several_gateways_that_fails_is_one_line(tmp_path: Path) -> None:
    check_one_line(serve(tmp_path, MANY_GATEWAYS), r"server\.redis_url: ")
    check_one_line(serve(tmp_path, MANY_GATEWAYS, str(tmp_path / "none")), "no such folder")
    check_one_line(serve(tmp_path, MANY_GATEWAYS, "--gateways", "5"), r"quota\.max_gateways: .* at least server")
    check_one_line(serve(tmp_path, FAKE_MODEL, "--gateways", "2"), r"needs server\.redis_url")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        check_one_line(serve(tmp_path, MANY_GATEWAYS, "--port", str(port)), f"127.0.0.1:{port}: can't be listened on")


def test_a_redis_that_is_of_no_use_is_one_line(tmp_path: Path, mortal: RedisServer) -> None:
    config = FAKE_MODEL + f'[server]\nredis_url = "{mortal.url}"\n'
    mortal.configure("maxmemory", "100mb")
    mortal.configure("maxmemory-policy", "allkeys-lru")
    evicts = r"server\.redis_url: .*allkeys-lru.* set maxmemory-policy to noeviction"
    check_one_line(serve(tmp_path, config), evicts)
    check_one_line(serve(tmp_path, config, "--gateways", "2"), evicts)
    mortal.kill()
    check_one_line(serve(tmp_path, config), r"server\.redis_url: Redis gives no answer")


def test_a_data_folder_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    check_one_line(serve(tmp_path, FAKE_MODEL), "data")


def test_models_lists_what_is_declared(tmp_path: Path) -> None:
    path = tmp_path / "penstock.toml"
    path.write_text(FAKE_MODEL + '[routing]\naliases = { other = "echo" }\n')
    done = penstock("models", "--config", path)
    assert done.returncode == 0
    assert re.search(r"echo@1.*fake.*other", done.stdout)
