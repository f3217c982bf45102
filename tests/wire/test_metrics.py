"""The exposition: it parses, its names are ours, its labels are bounded."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from urllib.parse import quote

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.penstock_process import PenstockProcess
from tests.wire.conftest import MakeKey, chat_body, connected, exchange

LABELS = {"model", "version", "endpoint", "outcome", "kind", "level", "dimension", "le", "state", "status", "code"}
ENDPOINTS = {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/messages", "/v1/responses"}
ENDPOINTS |= {f"{prefix}/{name}" for prefix in ("", "/v1") for name in ("rerank", "score")} | {
    "/v2/rerank",
    "/v1/responses/compact",
}
DEPLOYMENTS = {("echo", "1"), ("echo", "2"), ("slow/model", "1"), ("vectors", "1"), ("pairs", "1")}


def test_the_exposition(http: httpx.Client, admin: httpx.Client, make_key: MakeKey) -> None:
    http.post("/v1/chat/completions", json=chat_body())
    http.post("/v1/completions", json={"model": "echo", "prompt": "x", "max_tokens": 1})
    http.post("/v1/chat/completions?x=1", json=chat_body())
    http.get("/v1/models/made-up-name")
    http.post("/v1/chat/completions", json=chat_body(model="made-up-name"))
    http.get("/made-up-path")
    answer = admin.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "made-up" not in answer.text
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    samples = [sample for family in families.values() for sample in family.samples]
    assert all(sample.name.startswith("penstock_") for sample in samples)
    assert {label for sample in samples for label in sample.labels} <= LABELS
    assert {sample.labels["endpoint"] for sample in samples if "endpoint" in sample.labels} <= ENDPOINTS
    assert {sample.labels["model"] for sample in samples if "model" in sample.labels} == {
        model for model, _ in DEPLOYMENTS
    }


def test_nothing_that_clients_invent_makes_a_series(
    server: PenstockProcess, http: httpx.Client, admin: httpx.Client, stranger: httpx.Client
) -> None:
    def series() -> set[str]:
        lines = admin.get("/metrics").text.splitlines()
        return {line.rsplit(" ", 1)[0] for line in lines if not line.startswith("#")}

    def be_hostile(word: str) -> None:
        for model in (word, f"echo@{word}", f"{word}@1", "echo@1" + word, f'"}} {word}', f"echo\n{word}"):
            http.post("/v1/chat/completions", json=chat_body(model=model))
            http.post("/v1/embeddings", json={"model": model, "input": "x"})
            http.get(f"/v1/models/{quote(model)}")
        for path in (f"/{word}", f"/v1/{word}", f"/v1/chat/completions/{word}", f"/v1/chat/completions?{word}"):
            http.post(path, json=chat_body())
            stranger.get(path)
        http.request(word.upper(), "/v1/chat/completions", json=chat_body())
        http.post("/v1/chat/completions", json=chat_body() | {word: 1})
        http.post("/v1/chat/completions", json=chat_body(user=word, metadata={word: word}))
        http.post("/v1/chat/completions", json=chat_body(), headers={"x-request-id": word, "host": f"{word}.example"})
        stranger.post("/v1/chat/completions", headers={"authorization": f"Bearer {word}"}, json=chat_body())
        exchange(server, f"POST /v1/{word} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{word}\r\n\r\n".encode())

    be_hostile("invented-first")
    before = series()
    for number in range(3):
        be_hostile(f"invented-{number}")
    assert series() == before
    assert not any("invented" in line for line in before)


def test_connections_are_counted(server: PenstockProcess) -> None:
    before = server.metric("penstock_connections")
    with contextlib.ExitStack() as stack:
        for _ in range(40):  # others come and go, but not so many
            stack.enter_context(connected(server))
        wait_until(lambda: server.metric("penstock_connections") >= before + 20)
    wait_until(lambda: server.metric("penstock_connections") <= before + 10)


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_embedded_ledger_is_up(admin: httpx.Client) -> None:
    assert "\npenstock_quota_ledger_up 1.0\n" in admin.get("/metrics").text


def test_only_two_names_say_running_and_waiting(admin: httpx.Client) -> None:
    families = text_string_to_metric_families(admin.get("/metrics").text)
    names = {family.name for family in families if "running" in family.name or "waiting" in family.name}
    assert names == {"penstock_requests_running", "penstock_requests_waiting"}


def test_every_deployment_is_there_before_its_first_request(admin: httpx.Client) -> None:
    families = {f.name: f for f in text_string_to_metric_families(admin.get("/metrics").text)}
    ready = {(s.labels["model"], s.labels["version"]): s.value for s in families["penstock_replicas_ready"].samples}
    assert ready == dict.fromkeys(DEPLOYMENTS, 1)
    for name in ("penstock_requests_running", "penstock_requests_waiting"):
        assert len(families[name].samples) == len(DEPLOYMENTS)


def test_tokens_are_counted(http: httpx.Client, admin: httpx.Client) -> None:
    def count() -> dict[str, float]:
        families = {f.name: f for f in text_string_to_metric_families(admin.get("/metrics").text)}
        samples = families["penstock_tokens"].samples if "penstock_tokens" in families else []
        return {s.labels["kind"]: s.value for s in samples if s.labels["version"] == "2"}

    before = count()
    http.post("/v1/chat/completions", json=chat_body("12345", model="echo@2", max_tokens=7)).raise_for_status()
    after = count()
    assert after["prompt"] - before.get("prompt", 0) == 5
    assert after["completion"] - before.get("completion", 0) == 7
