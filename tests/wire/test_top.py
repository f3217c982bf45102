"""`penstock top` before a real server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from server.cli import app
from tests.penstock_process import ADMIN_KEY, API_KEY, PenstockProcess
from tests.wire.conftest import chat_body


def top(*urls: str, key: str = ADMIN_KEY) -> Result:
    environ = {"PENSTOCK_ADMIN_KEY": key, "COLUMNS": "100"}
    return CliRunner().invoke(app, ["top", "--once", "--interval", "0.2", *urls], env=environ)


def test_one_look(
    server: PenstockProcess, http: httpx.Client, admin: httpx.Client, new_key: Callable[..., dict[str, Any]]
) -> None:
    made = new_key("budget")
    headers = {"authorization": f"Bearer {made['key']}"}
    http.post("/v1/chat/completions", json=chat_body("x" * 30, max_tokens=8), headers=headers).raise_for_status()
    http.post("/v1/chat/completions", json=chat_body(model="not-a-model"))
    _wait_for_usage(admin, made["account"])
    result = top(server.base_url, "http://127.0.0.1:9")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    for name in ("echo@1", "echo@2", "slow/model@1", "vectors@1", "pairs@1"):
        assert any(line.startswith(name) and " 1/1 " in line for line in lines), result.output
    assert any(made["account"] in line and "tokens_per_day" in line for line in lines), result.output
    assert any("404 model_not_found" in line for line in lines)
    assert any("http://127.0.0.1:9 " in line and "can't be reached" in line for line in lines)
    assert API_KEY not in result.output


def _wait_for_usage(admin: httpx.Client, account: str) -> None:
    """It is written in batches."""
    for _ in range(200):
        if admin.get("/admin/v1/usage", params={"account": account}).json()["data"]:
            return
    raise AssertionError("no usage row was written")


@pytest.mark.parametrize(("key", "words"), [(API_KEY, "this needs an admin key"), ("x" * 20, "the key is not known")])
def test_a_key_that_opens_nothing(server: PenstockProcess, key: str, words: str) -> None:
    result = top(server.base_url, key=key)
    assert result.exit_code == 1
    assert words in result.output
    assert key not in result.output


def test_no_key_is_one_line() -> None:
    result = top(key="")
    assert result.exit_code == 2
    assert result.stderr.startswith("penstock: PENSTOCK_ADMIN_KEY: expected an admin key")
