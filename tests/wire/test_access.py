"""Who may do what: every route against every kind of wrong key, scopes, and nothing secret in the log."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from server.app import ROUTERS
from server.keys import generate
from tests.penstock_process import ADMIN_KEY, API_KEY, PenstockProcess
from tests.wire.conftest import MakeKey, chat_body, check_error, exchange

OPEN = {"/healthz", "/health", "/readyz"}
CHAT = "/v1/chat/completions"


def _routes() -> Iterator[tuple[str, str]]:
    for router in ROUTERS:
        for route in router.routes:
            if isinstance(route, APIRoute):
                for method in route.methods:
                    yield method, re.sub(r"\{[^}]*\}", "echo", route.path)


ROUTES = sorted(set(_routes()))
GUARDED = [(method, path) for method, path in ROUTES if path not in OPEN]


def _is_admin(path: str) -> bool:
    return path == "/metrics" or path.startswith("/admin/")


@pytest.fixture(scope="module")
def bad_headers(new_key: Callable[..., dict[str, Any]], admin: httpx.Client) -> dict[str, str | None]:
    """Authorization headers that open no route at all; None is a request without."""
    revoked = new_key()
    admin.delete(f"/admin/v1/keys/{revoked['id']}").raise_for_status()
    disabled = new_key()
    admin.patch(f"/admin/v1/accounts/{disabled['account']}", json={"disabled": True}).raise_for_status()
    return {
        "no key": None,
        "empty": "",
        "bare scheme": "Bearer",
        "another scheme": f"Basic {API_KEY}",
        "no scheme": API_KEY,
        "never issued": f"Bearer {generate().text}",
        "garbage": "Bearer \xff\x80",
        "too long": "Bearer " + "x" * 20_000,
        "two keys": f"Bearer {API_KEY}, {ADMIN_KEY}",
        "cut off": f"Bearer {API_KEY[:-1]}",
        "longer": f"Bearer {API_KEY}x",
        "other case": f"Bearer {API_KEY.upper()}",
        "revoked": f"Bearer {revoked['key']}",
        "of a disabled account": f"Bearer {disabled['key']}",
    }


def test_all_routes_are_walked() -> None:
    assert {CHAT, "/v1/completions", "/v1/models", "/v1/models/echo", "/metrics"} <= {path for _, path in GUARDED}
    assert {path for _, path in ROUTES} - {path for _, path in GUARDED} == OPEN


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_the_default_is_deny(
    stranger: httpx.Client, bad_headers: dict[str, str | None], method: str, path: str
) -> None:
    """Before the body is looked at."""
    for name, header in bad_headers.items():
        headers = {} if header is None else {"authorization": header.encode("latin-1")}
        answer = stranger.request(method, path, headers=headers, content=b"\xff garbage")
        error = check_error(answer, 401, "invalid_api_key")
        assert "key" in error["message"], name
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(("method", "path"), [route for route in GUARDED if route[1] != "/openapi.json"])
def test_admin_keys_and_api_keys_are_not_exchanged(server: PenstockProcess, method: str, path: str) -> None:
    with server.http(API_KEY if _is_admin(path) else ADMIN_KEY) as client:
        check_error(client.request(method, path), 403, "permission_denied")


@pytest.mark.parametrize(
    "path",
    [
        *("//healthz", "/healthz/", "/HEALTHZ", "/healthz/v1/models", "/healthz%2f..%2fmetrics", "/healthz;x"),
        *("/healthz%00", "/healthz/../v1/models", "/v1/models#/healthz", "/v1/models?/healthz", "//v1/models"),
        *("/V1/models", "/v1//models", "/./v1/models", "/v1/models/..%2f..%2fhealthz", "http://healthz/v1/models"),
        *("/metrics/", "//metrics", "/metrics%20", "/%6detrics", "/metrics?/healthz", "/healthz/../metrics"),
        *("/admin/v1/keys", "/admin/v1/keys/", "//admin/v1/keys", "/admin//v1/keys", "/ADMIN/v1/keys"),
        *("/v1/../admin/v1/keys", "/%61dmin/v1/keys", "/admin%2fv1%2fkeys", "/v1/models/..%2f..%2fadmin/v1/keys"),
    ],
)
def test_odd_paths_open_nothing(server: PenstockProcess, path: str) -> None:
    """Sent as written, which httpx would not do."""
    for header in ("X: y", f"Authorization: Bearer {API_KEY}"):
        request = f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{header}\r\n\r\n"
        answer = exchange(server, request.encode())
        assert re.match(rb"HTTP/1.1 (40[0134]|200) ", answer)
        assert b'"status":"ok"' not in answer
        assert b'"object":"key"' not in answer
        assert b"penstock_requests" not in answer
        assert not answer.startswith(b"HTTP/1.1 200 ") or header.startswith("Authorization")


def test_an_encoded_open_path_is_that_path(server: PenstockProcess) -> None:
    answer = exchange(server, b"GET /%68ealthz?key=x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert answer.endswith(b'{"status":"ok"}')


def test_an_expired_key(server: PenstockProcess, make_key: MakeKey) -> None:
    """It works until then, cached or not."""
    expiry = datetime.now(UTC) + timedelta(seconds=1)
    with server.http(make_key(expires_at=expiry.isoformat())) as client:
        while (answer := client.get("/v1/models")).status_code == 200:
            pass
        assert datetime.now(UTC) >= expiry
    check_error(answer, 401, "invalid_api_key")


def test_a_revoked_key_ends_at_once(
    server: PenstockProcess, admin: httpx.Client, new_key: Callable[..., dict[str, Any]]
) -> None:
    made = new_key()
    with server.http(made["key"]) as client:
        assert client.post(CHAT, json=chat_body()).status_code == 200
        admin.delete(f"/admin/v1/keys/{made['id']}").raise_for_status()
        check_error(client.post(CHAT, json=chat_body()), 401, "invalid_api_key")


def test_a_disabled_account_and_its_return(
    server: PenstockProcess, admin: httpx.Client, new_key: Callable[..., dict[str, Any]]
) -> None:
    made = new_key()
    with server.http(made["key"]) as client:
        for disabled, status in ((False, 200), (True, 401), (False, 200)):
            admin.patch(f"/admin/v1/accounts/{made['account']}", json={"disabled": disabled}).raise_for_status()
            assert client.post(CHAT, json=chat_body()).status_code == status


# --- scopes


@pytest.mark.parametrize(
    ("scope", "visible"),
    [
        (["echo@2"], {"echo@2", "pinned"}),
        (["echo@1"], {"echo", "echo@1", "gpt-4"}),
        (["echo"], {"echo", "echo@1", "echo@2", "gpt-4", "pinned"}),
        (["slow/model"], {"slow/model", "slow/model@1"}),
        (["nobody"], set()),
    ],
)
def test_a_key_sees_and_uses_its_models_alone(
    server: PenstockProcess, make_key: MakeKey, scope: list[str], visible: set[str]
) -> None:
    """The others do not exist for it."""
    names = {"echo", "echo@1", "echo@2", "gpt-4", "pinned", "slow/model", "slow/model@1"}
    with server.http(make_key(models=scope)) as client:
        assert {model["id"] for model in client.get("/v1/models").json()["data"]} == visible
        for name in names:
            answers = [client.get(f"/v1/models/{name}"), client.post(CHAT, json=chat_body(model=name, max_tokens=1))]
            for answer in answers:
                if name in visible:
                    assert answer.status_code == 200
                else:
                    check_error(answer, 404, "model_not_found")


def test_a_key_without_a_feature_is_refused_by_its_name(server: PenstockProcess, make_key: MakeKey) -> None:
    with server.http(make_key(features=["completions", "stream"])) as client:
        error = check_error(client.post(CHAT, json=chat_body()), 403, "permission_denied")
        assert "'chat'" in error["message"]
        body = {"model": "echo", "prompt": "x", "max_tokens": 1, "stream": True}
        assert client.post("/v1/completions", json=body).status_code == 200


# --- the log


def test_no_key_and_no_prompt_is_logged(
    server: PenstockProcess, http: httpx.Client, stranger: httpx.Client, admin: httpx.Client, make_key: MakeKey
) -> None:
    canary = "canary-7f3a9b"
    key, wrong = make_key(), generate().text
    stranger.get("/v1/models", headers={"authorization": f"Bearer {key}"})
    stranger.get("/v1/models", headers={"authorization": f"Bearer {wrong}"})
    stranger.get("/v1/models", params={"api_key": key})
    http.post(CHAT, json=chat_body(canary))
    http.post(CHAT, json=chat_body(canary, stream=True, stop=canary, user=canary))
    http.post(CHAT, json=chat_body(canary, temperature=canary))
    http.post(CHAT, json=chat_body(canary) | {canary: 1})
    http.post(CHAT, content=f'{{"messages": "{canary}'.encode())
    http.post("/v1/completions", json={"model": "echo", "prompt": canary})
    http.post("/v1/completions", json={"model": "slow/model", "prompt": [canary, 1]})
    admin.post("/admin/v1/keys", json={"account": "default", "name": "x", "nonsense": canary})
    log = server.log.read_text()
    for secret in (canary, API_KEY, ADMIN_KEY, key, wrong, key.split("-")[3], wrong.split("-")[3]):
        assert secret not in log
