"""What clients see when a worker or the server dies, or ends in order."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.penstock_process import API_KEY, PenstockProcess
from tests.wire.conftest import chat_body, check_error

MESSAGES: list[Any] = [{"role": "user", "content": "x"}]
CONFIG = """
[[models]]
name = "echo"
engine = "fake"
options = { delay_ms = 100 }

[quota.plans.default]
account = { concurrent = 4 }

[timeouts]
drain = 3
"""


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PenstockProcess]:
    """One of its own for each test: none survives."""
    with PenstockProcess(tmp_path_factory.mktemp("death"), CONFIG) as running:
        yield running


def _kill_workers(server: PenstockProcess) -> None:
    for pid in server.worker_pids():
        os.kill(pid, signal.SIGKILL)


def _serves_again(server: PenstockProcess) -> None:
    sdk = server.sdk(max_retries=20)
    assert sdk.chat.completions.create(model="echo", messages=MESSAGES, max_tokens=2).usage is not None


def test_a_workers_death_ends_its_streams_in_errors(server: PenstockProcess) -> None:
    """An SDK's stream raises; the bytes hold an error event and no [DONE]; the WebSocket lives on."""
    stream = server.sdk().chat.completions.create(model="echo", messages=MESSAGES, max_tokens=1000, stream=True)
    next(stream)
    with (
        server.http() as client,
        client.stream("POST", "/v1/chat/completions", json=chat_body(max_tokens=1000, stream=True)) as raw,
        connect(server.websocket_url, additional_headers={"Authorization": f"Bearer {API_KEY}"}) as ws,
    ):
        ws.send(json.dumps(chat_body(max_tokens=1000)))
        ws.recv()
        _kill_workers(server)
        with pytest.raises(openai.APIError, match="engine"):
            list(stream)
        data = b"".join(raw.iter_raw())
        assert b'data: {"error":{' in data
        assert b"[DONE]" not in data
        assert data.endswith(b"}\n\n")
        while "error" not in (frame := json.loads(ws.recv())):
            pass
        assert frame["error"]["code"] == "engine_failed"
        _serves_again(server)
        ws.send(json.dumps(chat_body(max_tokens=1)))
        assert json.loads(ws.recv())["choices"]
    server.wait_for_metric("penstock_requests_running", 0)
    assert server.metric("penstock_worker_restarts_total") == 1


def test_a_workers_death_is_a_503_for_whole_answers(server: PenstockProcess) -> None:
    with server.http() as client, httpx.Client(base_url=server.root_url) as probe:
        _kill_workers(server)
        answer = client.post("/v1/chat/completions", json=chat_body(max_tokens=1000))
        check_error(answer, 503)
        assert int(answer.headers["retry-after-ms"]) > 0
        assert probe.get("/healthz").status_code == 200
        _serves_again(server)
        assert probe.get("/readyz").json() == {"status": "ready"}


def test_a_killed_server_is_a_connection_error(server: PenstockProcess) -> None:
    sdk = server.sdk()
    stream = sdk.chat.completions.create(model="echo", messages=MESSAGES, max_tokens=1000, stream=True)
    next(stream)
    server.kill()
    with pytest.raises((openai.APIConnectionError, httpx.RemoteProtocolError, httpx.ReadError)):
        list(stream)
    with pytest.raises(openai.APIConnectionError):
        sdk.models.list()


def _read_until_closed(ws: ClientConnection) -> None:
    """Its last frame is an error."""
    frame: dict[str, Any] = {}
    try:
        while True:
            frame = json.loads(ws.recv())
    finally:
        assert frame["error"]["code"] == "shutting_down"


def test_an_orderly_end(server: PenstockProcess) -> None:
    """Short answers are finished, long ones end in an error event, new work is refused, the status is 0."""
    sdk = server.sdk()
    short = sdk.chat.completions.create(model="echo", messages=MESSAGES, max_tokens=4, stream=True)
    long = sdk.chat.completions.create(model="echo", messages=MESSAGES, max_tokens=1000, stream=True)
    next(short)
    next(long)
    connection = connect(server.websocket_url, additional_headers={"Authorization": f"Bearer {API_KEY}"})
    with connection as ws, httpx.Client(base_url=server.root_url) as probe, server.http() as client:
        ws.send(json.dumps(chat_body(max_tokens=1000)))
        os.kill(server.pid, signal.SIGTERM)
        while probe.get("/readyz").json() != {"status": "draining"}:
            pass
        answer = client.post("/v1/chat/completions", json=chat_body())
        check_error(answer, 503, "shutting_down")
        assert int(answer.headers["retry-after-ms"]) > 0
        with pytest.raises(ConnectionClosed) as closed:
            _read_until_closed(ws)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
    assert list(short)[-1].choices[0].finish_reason == "length"
    with pytest.raises(openai.APIError, match="shutting down"):
        list(long)
    assert server.stop() == 0
    assert "Traceback" not in server.log.read_text()
