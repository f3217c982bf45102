"""Quota as a client sees it: headers on every answer, and refusals that say when to come again."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from tests.penstock_process import PenstockProcess
from tests.wire.conftest import BLOCKED, MakeKey, chat_body, check_error

CHAT = "/v1/chat/completions"
DURATION = r"\d+ms|(\d+h)?(\d+m)?\d+(\.\d{1,3})?s"


def _check_headers(answer: httpx.Response, requests: int, tokens: int) -> None:
    for unit, limit in (("requests", requests), ("tokens", tokens)):
        assert answer.headers[f"x-ratelimit-limit-{unit}"] == str(limit)
        assert 0 <= int(answer.headers[f"x-ratelimit-remaining-{unit}"]) < limit
        assert re.fullmatch(DURATION, answer.headers[f"x-ratelimit-reset-{unit}"])


@pytest.mark.parametrize("stream", [False, True])
def test_answers_carry_the_tightest_layers_limits(server: PenstockProcess, make_key: MakeKey, stream: bool) -> None:
    with server.http(make_key("wide")) as client:
        _check_headers(client.post(CHAT, json=chat_body(stream=stream)), 600, 200_000)
        body = {"model": "echo", "prompt": ["a", "b"], "max_tokens": 2, "stream": stream}
        _check_headers(client.post("/v1/completions", json=body), 600, 200_000)


def test_where_nothing_is_limited_there_are_no_headers(http: httpx.Client) -> None:
    answer = http.post(CHAT, json=chat_body())
    assert not [name for name in answer.headers if name.startswith("x-ratelimit")]


@pytest.mark.parametrize(
    ("path", "changes", "status"),
    [
        (CHAT, {"model": "nothing"}, 404),
        (CHAT, {"n": 17}, 400),
        (CHAT, {"messages": 5}, 400),
        (CHAT, {"max_tokens": 1_000_000}, 400),
        (CHAT, {"messages": [{"role": "user", "content": BLOCKED}]}, 400),
        ("/v1/completions", {"prompt": [256]}, 400),
        ("/v1/completions", {"prompt": "", "stream": True}, 400),
    ],
)
def test_errors_before_a_reservation_carry_them_too(
    server: PenstockProcess, make_key: MakeKey, path: str, changes: dict[str, Any], status: int
) -> None:
    body = chat_body() if path == CHAT else {"model": "echo"}
    with server.http(make_key("one-request")) as client:
        answers = [client.post(path, json=body | changes), client.get("/v1/models/nothing")]
    check_error(answers[0], status)
    for answer in answers:
        found = [answer.headers[f"x-ratelimit-{name}-requests"] for name in ("limit", "remaining", "reset")]
        assert found == ["1", "1", "0ms"]  # refused, and it cost nothing


def test_a_rate_says_when_and_which(server: PenstockProcess, make_key: MakeKey) -> None:
    with server.http(make_key("one-request")) as client:
        assert client.post(CHAT, json=chat_body(stream=True)).status_code == 200
        answer = client.post(CHAT, json=chat_body(stream=True))
    error = check_error(answer, 429, "rate_limit_exceeded")
    assert (error["type"], error["param"]) == ("requests", None)
    assert "account" in error["message"]
    assert "rpm" in error["message"]
    wait = int(answer.headers["retry-after-ms"])
    assert 0 < wait <= 60_000
    assert int(answer.headers["retry-after"]) == -(-wait // 1000)
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    assert "x-should-retry" not in answer.headers


def test_tokens_have_their_own_type(server: PenstockProcess, make_key: MakeKey) -> None:
    with server.http(make_key("tokens")) as client:
        client.post(CHAT, json=chat_body(max_tokens=590)).raise_for_status()
        answer = client.post(CHAT, json=chat_body(max_tokens=590))
        error = check_error(answer, 429, "rate_limit_exceeded")
        assert error["type"] == "tokens"
        assert "tpm" in error["message"]
        check_error(client.post(CHAT, json=chat_body(max_tokens=600)), 400, "request_above_limit")


def test_a_spent_budget_is_not_to_be_retried(server: PenstockProcess, make_key: MakeKey) -> None:
    with server.http(make_key("budget")) as client:
        client.post(CHAT, json=chat_body(max_tokens=30)).raise_for_status()
        answer = client.post(CHAT, json=chat_body(max_tokens=30))
        error = check_error(answer, 429, "insufficient_quota")
        assert error["type"] == "insufficient_quota"
        assert answer.headers["x-should-retry"] == "false"
        assert client.post(CHAT, json=chat_body("", max_tokens=1)).status_code == 400  # refused, and costs nothing
        client.post(
            CHAT, json=chat_body("", messages=[{"role": "user", "content": "x"}], max_tokens=4)
        ).raise_for_status()


def test_a_finished_request_is_never_met_by_the_next(server: PenstockProcess, make_key: MakeKey) -> None:
    """One at a time, and each is settled before its last byte is sent."""
    with server.http(make_key("single")) as client:
        for number in range(20):
            answer = client.post(CHAT, json=chat_body(stream=number % 2 == 0))
            assert answer.status_code == 200, answer.text


def test_one_that_left_is_given_back(server: PenstockProcess, make_key: MakeKey) -> None:
    with server.http(make_key("single")) as client:
        body = chat_body(model="slow/model", stream=True, max_tokens=1000)
        with client.stream("POST", CHAT, json=body) as answer:
            parts = answer.iter_raw()
            next(parts)
            error = check_error(client.post(CHAT, json=chat_body()), 429, "rate_limit_exceeded")
            assert "concurrent" in error["message"]
        while (again := client.post(CHAT, json=chat_body())).status_code == 429:
            pass
    assert again.status_code == 200
    server.wait_for_metric("penstock_requests_running", 0)


def test_no_request_is_charged_for_an_error_of_its_own(server: PenstockProcess, make_key: MakeKey) -> None:
    with server.http(make_key("one-request")) as client:
        for body in (chat_body(temperature=9), chat_body(model="nobody"), chat_body(top_logprobs=3)):
            assert client.post(CHAT, json=body).status_code in (400, 404)
        assert client.post(CHAT, json=chat_body()).status_code == 200
