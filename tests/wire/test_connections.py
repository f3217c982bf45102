"""Sockets by hand: what well-behaved clients never do, and old or hurried ones do."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from tests.penstock_process import API_KEY, PenstockProcess
from tests.wire.conftest import chat_body, connected, exchange

AUTHORIZED = f"Host: test\r\nAuthorization: Bearer {API_KEY}\r\n"
STRICT = """
[[models]]
name = "echo"
engine = "fake"

[quota.plans.default]
account = {}

[timeouts]
body = 0.5
write = 0.5

[limits]
body_bytes = 65536
"""


def post(body: bytes, *headers: str, version: str = "1.1", path: str = "/v1/chat/completions") -> bytes:
    lines = [f"POST {path} HTTP/{version}", *headers, f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n" + AUTHORIZED.encode() + b"\r\n" + body


def body_of(**fields: object) -> bytes:
    return json.dumps(chat_body(**fields)).encode()  # type: ignore[arg-type]


def num_deaf(server: PenstockProcess) -> float:
    """Requests cut off by our timeout, or by the kernel's, which is as long (server/gateway.py)."""
    return sum(server.metric("penstock_requests_total", outcome=outcome) for outcome in ("write_timeout", "abort"))


def wait_until(condition: Callable[[], bool], timeout: float = 30) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PenstockProcess]:
    with PenstockProcess(tmp_path_factory.mktemp("strict"), STRICT) as running:
        yield running


def test_http_1_0(server: PenstockProcess) -> None:
    answer = exchange(server, post(body_of(), version="1.0"))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert json.loads(body)["model"] == "echo@1"
    assert exchange(server, post(body_of(stream=True), version="1.0")).count(b"data: [DONE]") == 1


def test_connection_close(server: PenstockProcess) -> None:
    answer = exchange(server, post(body_of(), "Connection: close"))
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in answer.lower()


def test_a_chunked_body(server: PenstockProcess) -> None:
    body = body_of()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n{AUTHORIZED}\r\n"
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    assert exchange(server, head.encode() + chunks).startswith(b"HTTP/1.1 200")


def test_pipelined_requests_are_answered_in_order(server: PenstockProcess) -> None:
    requests = post(body_of(stream=True)) + post(body_of(model="echo@2")) + post(body_of(), "Connection: close")
    answer = exchange(server, requests)
    assert answer.count(b"HTTP/1.1 200") == 3
    assert answer.index(b"data: [DONE]") < answer.index(b'"model":"echo@2"') < answer.rindex(b'"model":"echo@1"')


@pytest.mark.parametrize("host", ["[::1", "a b", "", "x" * 300, "\xff", "evil.example:99999999", "a/b?c#d@e", "[x]:y"])
def test_an_odd_host_changes_nothing(server: PenstockProcess, host: str) -> None:
    def get(path: str, *headers: str) -> bytes:
        lines = [f"GET {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers, "", ""]
        return exchange(server, "\r\n".join(lines).encode("latin-1"))

    assert get("/v1/models").startswith(b"HTTP/1.1 401 ")
    assert get("/nowhere").startswith(b"HTTP/1.1 404 ")
    assert get("/healthz").startswith(b"HTTP/1.1 200 ")
    assert get("/v1/models", f"Authorization: Bearer {API_KEY}").startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "line", ["GET  HTTP/1.1", "GET / HTTP/9.9", "G\x00T / HTTP/1.1", "GET /\xff HTTP/1.1", "POST", "\x16\x03\x01\x00"]
)
def test_what_is_no_http_is_refused(server: PenstockProcess, line: str) -> None:
    answer = exchange(server, f"{line}\r\nHost: a\r\n\r\n".encode("latin-1"))
    assert answer.startswith(b"HTTP/1.1 400 ")


def test_more_than_one_authorization_is_none(server: PenstockProcess) -> None:
    twice = f"GET /v1/models HTTP/1.1\r\nConnection: close\r\nAuthorization: Bearer {API_KEY}\r\n{AUTHORIZED}\r\n"
    assert exchange(server, twice.encode()).startswith(b"HTTP/1.1 401 ")


# --- bodies


def test_a_body_above_the_limit_is_refused_before_it_is_sent(server: PenstockProcess) -> None:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: {4 * 2**20 + 1}\r\n{AUTHORIZED}\r\n"
    answer = exchange(server, head.encode())
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"request_too_large"' in answer


def test_a_body_of_unknown_length_is_refused_at_the_limit(http: httpx.Client) -> None:
    answer = http.post("/v1/chat/completions", content=(b"x" * 65536 for _ in range(10_000)))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert answer.headers["connection"] == "close"


def test_a_length_that_is_no_number(server: PenstockProcess) -> None:
    for length in ("-1", "1e3", "0x10", "99999999999999999999999", "1, 2"):
        head = f"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: {length}\r\n{AUTHORIZED}\r\n"
        assert exchange(server, head.encode())[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 413")


def test_authentication_comes_before_the_body(server: PenstockProcess) -> None:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {2**30}\r\n\r\n"
    with connected(server) as connection:
        connection.sendall(head.encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")


def test_a_client_that_waits_for_100_continue_is_told_at_once(server: PenstockProcess) -> None:
    wish = f"Expect: 100-continue\r\n{AUTHORIZED}\r\n"
    with connected(server) as connection:
        body = body_of()
        connection.sendall(f"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: {len(body)}\r\n{wish}".encode())
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
    too_long = f"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: {2**30}\r\n{wish}"
    assert exchange(server, too_long.encode()).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_does_not_come_is_a_timeout(strict: PenstockProcess) -> None:
    answer = exchange(strict, post(b"")[:-2].replace(b"Content-Length: 0", b"Content-Length: 9") + b"\r\n{")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in answer


def test_the_limit_is_the_configured_one(strict: PenstockProcess) -> None:
    with strict.http() as client:
        answer = client.post("/v1/chat/completions", json=chat_body("x" * 66_000))
    assert answer.status_code == 413
    assert "65536" in answer.text


# --- clients that leave


def test_a_client_that_leaves_within_its_body_is_no_error(server: PenstockProcess) -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        with connected(server) as connection:
            request = post(b"x" * 100, path=path)
            connection.sendall(request[:-50])
            time.sleep(0.1)  # the handler waits for the rest
    with server.http() as client:
        assert client.post("/v1/chat/completions", json=chat_body()).status_code == 200
    assert "ClientDisconnect" not in server.log.read_text()
    assert '"level": "error"' not in server.log.read_text()


@pytest.mark.parametrize("streamed", [False, True])
def test_a_client_that_leaves_frees_its_sequence(server: PenstockProcess, streamed: bool) -> None:
    with connected(server) as connection:
        connection.sendall(post(body_of(model="slow/model", max_tokens=10_000, stream=streamed)))
        server.wait_for_metric("penstock_requests_running", 1)
    server.wait_for_metric("penstock_requests_running", 0)
    wait_until(lambda: server.metric("penstock_requests_total", model="slow/model", outcome="abort") > 0)


def test_a_reader_that_takes_nothing_loses_its_connection(strict: PenstockProcess) -> None:
    """Its work is stopped and settled, and nothing of it is an error of the server."""
    with connected(strict) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = {"model": "echo", "prompt": ["x" * n for n in range(1, 65)], "max_tokens": 50_000, "stream": True}
        connection.sendall(post(json.dumps(body).encode(), path="/v1/completions"))
        wait_until(lambda: num_deaf(strict) == 1)
    strict.wait_for_metric("penstock_requests_running", 0)
    assert "Traceback" not in strict.log.read_text()


def test_a_websocket_that_takes_nothing_is_left_too(strict: PenstockProcess) -> None:
    ended_before = num_deaf(strict)
    url = httpx.URL(strict.root_url)
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    narrow.connect((url.host, url.port))
    options: Any = {"additional_headers": {"Authorization": f"Bearer {API_KEY}"}, "compression": None}
    with connect(strict.websocket_url, sock=narrow, close_timeout=0, ping_interval=None, **options) as ws:
        for number in range(32):
            ws.send(json.dumps(chat_body(max_tokens=50_000, request_id=str(number))))
        wait_until(lambda: num_deaf(strict) > ended_before)
    strict.wait_for_metric("penstock_requests_running", 0)
    # Those that were not writing at that moment end with the connection.
    wait_until(lambda: num_deaf(strict) == ended_before + 32)
    assert "Traceback" not in strict.log.read_text()
