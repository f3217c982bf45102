"""One server for all tests of the wire, and accounts of their own for those that count."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.court import every_answer_is_right, judged
from tests.penstock_process import ADMIN_KEY, PenstockProcess

__all__ = ["every_answer_is_right"]

ORIGIN = "https://app.example"
BLOCKED = "forbidden-term"
HATED = "hated-term"
CONFIG = f"""
[server]
cors_origins = ["{ORIGIN}"]

[[models]]
name = "echo"
version = "1"
engine = "fake"

[[models]]
name = "echo"
version = "2"
engine = "fake"
max_model_len = 4096

[[models]]
name = "slow/model"
engine = "fake"
options = {{ delay_ms = 200 }}

[[models]]
name = "vectors"
engine = "fake"
task = "embed"
matryoshka = true
max_model_len = 2048

[[models]]
name = "pairs"
engine = "fake"
task = "score"

[routing]
aliases = {{ "gpt-4" = "echo", "pinned" = "echo@2" }}
default_versions = {{ "echo" = "1" }}

[quota.plans.default]
account = {{}}

[quota.plans.wide]
account = {{ rpm = 600, tpm = 200000, concurrent = 8 }}
key = {{ rpm = 6000 }}

[quota.plans.one-request]
account = {{ rpm = 1 }}

[quota.plans.tokens]
account = {{ tpm = 600 }}

[quota.plans.budget]
account = {{ tokens_per_day = 40 }}

[quota.plans.single]
account = {{ concurrent = 1 }}

[filter]
block_input = ["{BLOCKED}"]
categories = {{ "hate" = ["{HATED}"], "self-harm/intent" = ["{HATED}", "other"] }}

[timeouts]
keep_alive = 0.05

[files]
file_bytes = 2000000
account_bytes = 4000000
"""

MakeKey = Callable[..., str]
MESSAGE_ERRORS = {401: "authentication_error", 403: "permission_error"}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PenstockProcess]:
    with judged(PenstockProcess(tmp_path_factory.mktemp("wire"), CONFIG, judged=True)) as running:
        yield running


@pytest.fixture(scope="session")
def admin(server: PenstockProcess) -> Iterator[httpx.Client]:
    with server.http(ADMIN_KEY) as client:
        yield client


@pytest.fixture(scope="session")
def http(server: PenstockProcess) -> Iterator[httpx.Client]:
    """The preset API key: no limits, no scopes."""
    with server.http() as client:
        yield client


@pytest.fixture(scope="session")
def stranger(server: PenstockProcess) -> Iterator[httpx.Client]:
    with server.http(None) as client:
        yield client


@pytest.fixture(scope="session")
def new_account(admin: httpx.Client) -> Callable[[str], str]:
    def make(plan: str) -> str:
        name = f"account-{secrets.token_hex(4)}"
        admin.post("/admin/v1/accounts", json={"name": name, "plan": plan}).raise_for_status()
        return name

    return make


@pytest.fixture(scope="session")
def new_key(admin: httpx.Client, new_account: Callable[[str], str]) -> Callable[..., dict[str, Any]]:
    """Makes a key, of a new account with `plan` unless `account` is named: what the admin API says of it."""

    def make(plan: str = "default", **fields: object) -> dict[str, Any]:
        body = {"account": new_account(plan)} | fields if "account" not in fields else fields
        made: dict[str, Any] = admin.post("/admin/v1/keys", json=body).raise_for_status().json()
        return made

    return make


@pytest.fixture(scope="session")
def make_key(new_key: Callable[..., dict[str, Any]]) -> MakeKey:
    def make(plan: str = "default", **fields: object) -> str:
        key: str = new_key(plan, **fields)["key"]
        return key

    return make


def chat_body(prompt: str = "hello", **fields: object) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": prompt}], "max_tokens": 8, **fields}


def check_error(answer: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    """The envelope and nothing but it; returns what is in it. Anthropic's has no codes."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"].startswith("req-")
    body = answer.json()
    error: dict[str, Any] = body["error"]
    if answer.request.url.path.startswith("/v1/messages"):
        assert (body.keys(), error.keys()) == ({"type", "error", "request_id"}, {"type", "message"})
        assert error["type"] == MESSAGE_ERRORS[status]
        return error
    assert body.keys() == {"error"}
    assert error.keys() == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    if code is not None:
        assert error["code"] == code
    return error


@contextlib.contextmanager
def connected(server: PenstockProcess) -> Iterator[socket.socket]:
    url = httpx.URL(server.root_url)
    with socket.create_connection((url.host, url.port or 80), timeout=60) as connection:
        yield connection


def read_all(connection: socket.socket) -> bytes:
    """Until the server closes."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            data += part
    return data


def exchange(server: PenstockProcess, request: bytes) -> bytes:
    with connected(server) as connection:
        connection.sendall(request)
        return read_all(connection)
