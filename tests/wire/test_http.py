"""What every HTTP answer has in common: the envelope, our request id, CORS; and the bytes of a stream."""

from __future__ import annotations

import json
import re

import httpx
import pytest

from tests.penstock_process import PenstockProcess
from tests.wire.conftest import ORIGIN, chat_body, check_error

CHAT = "/v1/chat/completions"


def test_unknown_routes_are_told_so_in_the_envelope(http: httpx.Client, stranger: httpx.Client) -> None:
    for client in (http, stranger):
        for path in ("/", "/v1", "/v1/nothing", "/docs", "/v1/chat/completions/", "/%2e%2e/healthz"):
            check_error(client.get(path), 404, "unknown_url")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", CHAT, "POST"),
        ("GET", CHAT, "POST"),
        ("DELETE", "/v1/models", "GET"),
        ("OPTIONS", "/v1/models", "GET"),
        ("POST", "/v1/models/echo", "GET"),
        ("POST", "/healthz", "GET, HEAD"),
        ("PUT", "/admin/v1/accounts", "GET, POST"),
        ("PUT", "/admin/v1/keys/x", "DELETE, GET"),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(http: httpx.Client, method: str, path: str, allow: str) -> None:
    answer = http.request(method, path)
    check_error(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == allow


def test_head_has_no_body(http: httpx.Client) -> None:
    answer = http.head(CHAT)
    assert (answer.status_code, answer.headers["allow"], answer.content) == (405, "POST", b"")


def test_every_answer_has_an_id_of_ours(http: httpx.Client, stranger: httpx.Client) -> None:
    """A client's own id is never used as ours."""
    theirs = {"x-request-id": "req-00000000000000000000000000000000"}
    answers = [
        http.get("/v1/models", headers=theirs),
        http.get("/healthz", headers=theirs),
        http.get("/readyz", headers=theirs),
        http.get("/nowhere", headers=theirs),
        http.put(CHAT, headers=theirs),
        http.post(CHAT, headers=theirs, content=b"{"),
        http.post(CHAT, headers=theirs, json=chat_body()),
        http.post(CHAT, headers=theirs, json=chat_body(stream=True)),
        http.get("/metrics", headers=theirs),
        stranger.get("/v1/models", headers=theirs),
        stranger.options(CHAT, headers=theirs | {"origin": ORIGIN, "access-control-request-method": "POST"}),
    ]
    ids = {answer.headers["x-request-id"] for answer in answers}
    assert len(ids) == len(answers)
    assert theirs["x-request-id"] not in ids
    assert all(re.fullmatch("req-[0-9a-f]{32}", request_id) for request_id in ids)


def test_the_clients_id_is_a_field_of_the_log(server: PenstockProcess, http: httpx.Client) -> None:
    answer = http.post(CHAT, headers={"x-request-id": 'mine "1"'}, json=chat_body())
    logged = [json.loads(line) for line in server.log.read_text().splitlines()]
    (line,) = [line for line in logged if line.get("request_id") == answer.headers["x-request-id"]]
    assert line["client_request_id"] == 'mine "1"'
    assert (line["model"], line["outcome"], line["completion_tokens"]) == ("echo@1", "length", 8)


# --- CORS


def test_a_page_of_the_allowed_origin_may_ask_and_read(stranger: httpx.Client) -> None:
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    answer = stranger.options(CHAT, headers={"origin": ORIGIN, **asked})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, ORIGIN)
    assert "authorization" in answer.headers["access-control-allow-headers"]
    for path, status in (("/v1/models", 401), ("/nowhere", 404)):  # errors are readable too
        answer = stranger.get(path, headers={"origin": ORIGIN})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, ORIGIN)
        assert "x-ratelimit-remaining-tokens" in answer.headers["access-control-expose-headers"]


def test_a_page_of_another_origin_may_not(stranger: httpx.Client) -> None:
    asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    answer = stranger.options(CHAT, headers=asked)
    assert answer.status_code == 400
    assert "access-control-allow-origin" not in answer.headers
    answer = stranger.get("/v1/models", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in answer.headers


# --- streams


def test_the_bytes_of_a_stream(http: httpx.Client) -> None:
    answer = http.post(CHAT, json=chat_body(stream=True, max_tokens=5))
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.content.endswith(b"\n\ndata: [DONE]\n\n")
    events = answer.content.split(b"\n\n")
    assert events.pop() == b""
    assert all(re.fullmatch(rb"data: (\{.*\}|\[DONE\])|: ping", event) for event in events)
    assert b"\r" not in answer.content


def test_pings_keep_a_quiet_stream_open(http: httpx.Client) -> None:
    answer = http.post(CHAT, json=chat_body(model="slow/model", stream=True, max_tokens=3))
    events = answer.text.split("\n\n")
    assert events[0].startswith("data: "), "a ping before the first chunk"
    assert events.count(": ping") >= 3
    chunks = [json.loads(event.removeprefix("data: ")) for event in events if event.startswith("data: {")]
    assert sum(bool(chunk["choices"][0]["delta"].get("content")) for chunk in chunks) == 3
    assert events[-2:] == ["data: [DONE]", ""]


def test_an_impatient_client_is_pinged_at_a_bounded_rate(http: httpx.Client) -> None:
    """Half its read timeout would be a ping as fast as the server can write them."""
    impatient = {"x-stainless-read-timeout": "1e-9"}
    answer = http.post(CHAT, headers=impatient, json=chat_body(model="slow/model", stream=True, max_tokens=2))
    assert answer.text.count(": ping") < 100
    assert answer.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("value", ["", "0", "-1", "nan", "inf", "abc", "600"])
def test_a_read_timeout_that_makes_no_sense_says_nothing(http: httpx.Client, value: str) -> None:
    answer = http.post(CHAT, headers={"x-stainless-read-timeout": value}, json=chat_body())
    assert answer.status_code == 200


def test_an_error_before_the_first_byte_is_no_stream(http: httpx.Client) -> None:
    check_error(http.post(CHAT, json=chat_body(model="nobody", stream=True)), 404, "model_not_found")


# --- models


@pytest.mark.parametrize(
    "path",
    ["slow/model", "slow%2Fmodel", "slow/model@1", "slow%2fmodel%401", "echo%402", "%65cho", "gpt-4"],
)
def test_a_models_name_may_hold_slashes_and_be_encoded(http: httpx.Client, path: str) -> None:
    answer = http.get(f"/v1/models/{path}")
    assert answer.status_code == 200
    assert answer.json().keys() == {"id", "object", "created", "owned_by"}


@pytest.mark.parametrize(
    "path", ["", "echo/", "/echo", "echo@", "echo@3", "ECHO", "%ff%00", "..%2fecho", "模型", "x" * 10_000]
)
def test_an_unknown_model_is_not_found(http: httpx.Client, path: str) -> None:
    error = check_error(http.get(f"/v1/models/{path}"), 404, "model_not_found")
    assert len(error["message"]) < 300


# --- health


def test_health_is_a_word_and_open(stranger: httpx.Client) -> None:
    for path, word in (("/healthz", "ok"), ("/health", "ok"), ("/readyz", "ready")):
        answer = stranger.get(path)
        assert (answer.status_code, answer.json()) == (200, {"status": word})
