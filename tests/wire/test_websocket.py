"""Chat completions over a WebSocket: the founding client, several requests on one connection, and how each ends."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, ConnectionClosedError

from engines.fake_tokens import fake_answer
from server.websocket import MAX_OPEN_REQUESTS
from tests.penstock_process import ADMIN_KEY, API_KEY, PenstockProcess
from tests.wire.conftest import BLOCKED, ORIGIN, MakeKey, chat_body

BEARER = {"Authorization": f"Bearer {API_KEY}"}
Connect = Callable[..., connect]


def answer_to(prompt: str, num_tokens: int) -> str:
    return bytes(fake_answer(list(prompt.encode()), num_tokens)).decode()


@pytest.fixture
def dial(server: PenstockProcess) -> Connect:
    """Opens a connection, with the preset key unless other headers are given."""

    def make(**options: Any) -> connect:
        return connect(server.websocket_url, **{"additional_headers": BEARER, "max_size": None, **options})

    return make


@pytest.fixture
async def ws(dial: Connect) -> AsyncIterator[ClientConnection]:
    async with dial() as connection:
        yield connection


async def send(ws: ClientConnection, **fields: Any) -> None:
    await ws.send(json.dumps(fields))


async def receive(ws: ClientConnection) -> dict[str, Any]:
    frame = await ws.recv()
    assert isinstance(frame, str), "a binary frame"
    parsed: dict[str, Any] = json.loads(frame)
    return parsed


async def receive_error(ws: ClientConnection, code: str) -> dict[str, Any]:
    frame = await receive(ws)
    assert frame.keys() <= {"error", "request_id"}
    assert frame["error"].keys() == {"message", "type", "param", "code"}
    assert frame["error"]["code"] == code, frame
    return frame


async def read_answer(ws: ClientConnection) -> str:
    """The text of the one answer that is under way, as the founding client reads it."""
    text = ""
    while True:
        choice = (await receive(ws))["choices"][0]
        text += choice["delta"].get("content", "")
        if choice["finish_reason"]:
            return text


async def read_to_the_end(ws: ClientConnection) -> None:
    while True:
        await ws.recv()


async def still_serves(ws: ClientConnection) -> None:
    await send(ws, **chat_body("still?", max_tokens=3))
    assert await read_answer(ws) == answer_to("still?", 3)


async def test_the_founding_client(server: PenstockProcess) -> None:
    async with connect(server.websocket_url, additional_headers=BEARER) as ws:
        request = {"model": "gpt-4", "messages": [{"role": "user", "content": "解释量子计算"}], "stream": True}
        await ws.send(json.dumps(request))
        text = ""
        while True:
            data = json.loads(await ws.recv())
            assert (data["object"], data["model"]) == ("chat.completion.chunk", "echo@1")
            text += data["choices"][0]["delta"].get("content", "")
            if data["choices"][0]["finish_reason"]:
                break
    assert text == answer_to("解释量子计算", 256)


async def test_the_handshake_carries_our_request_id(ws: ClientConnection) -> None:
    assert ws.response is not None
    assert re.fullmatch("req-[0-9a-f]{32}", ws.response.headers["x-request-id"])


@pytest.mark.parametrize("usage", [False, True])
async def test_frames_are_the_chunks_of_sse(http: httpx.Client, ws: ClientConnection, usage: bool) -> None:
    """Byte for byte, but for the answer's own id and time."""
    body = chat_body("the same", stream=True, max_tokens=20)
    if usage:
        body["stream_options"] = {"include_usage": True}
    answer = await asyncio.to_thread(http.post, "/v1/chat/completions", json=body)
    events = answer.text.split("\n\n")
    chunks = [event.removeprefix("data: ") for event in events if event.startswith("data: {")]
    await send(ws, **body)
    frames = [await ws.recv()]
    while not _is_last(frames[-1], usage):
        frames.append(await ws.recv())
    assert _merged(frames) == _merged(chunks)


def _is_last(frame: str | bytes, usage: bool) -> bool:
    chunk = json.loads(frame)
    return chunk["choices"] == [] if usage else bool(chunk["choices"][0]["finish_reason"])


def _merged(chunks: list[Any]) -> list[str]:
    """Without ids and times, and with neighbouring texts joined: a slow reader gets several tokens in one chunk."""
    merged: list[str] = []
    for chunk in chunks:
        plain = re.sub(r'"id":"chatcmpl-\w+"|"created":\d+', "_", chunk)
        split = re.fullmatch(r'(.*"delta":\{"content":")(.*)("\},.*)', plain)
        if split and merged and merged[-1].startswith(split[1]):
            plain = merged.pop().removesuffix(split[3]) + split[2] + split[3]
        merged.append(plain)
    return merged


async def test_requests_with_ids_run_side_by_side(ws: ClientConnection) -> None:
    for name in ("a", "b", "c"):
        await send(ws, request_id=name, **chat_body(name, model="slow/model", max_tokens=3))
    texts, order, open_requests = {"a": "", "b": "", "c": ""}, [], {"a", "b", "c"}
    while open_requests:
        chunk = await receive(ws)
        (choice,) = chunk["choices"]
        assert chunk["request_id"] in open_requests, "a frame after the end of its request"
        order.append(chunk["request_id"])
        texts[chunk["request_id"]] += choice["delta"].get("content", "")
        if choice["finish_reason"]:
            open_requests.remove(chunk["request_id"])
    assert texts == {name: answer_to(name, 3) for name in texts}
    assert order != sorted(order), "one after another"


async def test_requests_without_ids_run_one_after_another(ws: ClientConnection) -> None:
    for number in range(5):
        await send(ws, **chat_body(f"number {number}", max_tokens=6))
    assert [await read_answer(ws) for _ in range(5)] == [answer_to(f"number {n}", 6) for n in range(5)]


async def test_an_id_may_be_used_again_when_its_answer_has_ended(ws: ClientConnection) -> None:
    for _ in range(10):
        await send(ws, request_id="x", **chat_body(max_tokens=2))
        assert await read_answer(ws) == answer_to("hello", 2)


async def test_an_id_that_is_in_use_is_refused(ws: ClientConnection) -> None:
    await send(ws, request_id="x", **chat_body(model="slow/model", max_tokens=1000))
    await send(ws, request_id="x", **chat_body())
    frame = await receive_error(ws, "invalid_value")
    assert (frame["request_id"], frame["error"]["param"]) == ("x", "request_id")


async def test_a_frame_in_bytes_is_read_as_text(ws: ClientConnection) -> None:
    await ws.send(json.dumps(chat_body(max_tokens=4)).encode())
    assert await read_answer(ws) == answer_to("hello", 4)


# --- cancelling


async def test_a_request_is_cancelled(server: PenstockProcess, ws: ClientConnection) -> None:
    await send(ws, request_id="x", **chat_body(model="slow/model", max_tokens=10_000))
    assert (await receive(ws))["choices"][0]["delta"]["role"] == "assistant"
    await send(ws, type="cancel", request_id="x")
    while "error" not in (frame := await receive(ws)):
        assert frame["request_id"] == "x"
    assert (frame["error"]["code"], frame["request_id"]) == ("cancelled", "x")
    await still_serves(ws)
    server.wait_for_metric("penstock_requests_running", 0)


async def test_a_request_is_cancelled_before_it_begins(server: PenstockProcess, ws: ClientConnection) -> None:
    for name in ("x", "y", "z"):
        await send(ws, request_id=name, **chat_body(model="slow/model", max_tokens=10_000))
        await send(ws, type="cancel", request_id=name)
        assert (await receive_error(ws, "cancelled"))["request_id"] == name
    await send(ws, request_id="x", **chat_body(max_tokens=2))
    assert await read_answer(ws) == answer_to("hello", 2)


async def test_a_request_without_id_is_cancelled_and_the_next_one_runs(ws: ClientConnection) -> None:
    await send(ws, **chat_body(model="slow/model", max_tokens=10_000))
    await send(ws, **chat_body("next", max_tokens=3))
    await receive(ws)
    await send(ws, type="cancel")
    while "error" not in (frame := await receive(ws)):
        pass
    assert frame["error"]["code"] == "cancelled"
    assert await read_answer(ws) == answer_to("next", 3)


async def test_cancelling_what_is_not_there_is_silent(ws: ClientConnection) -> None:
    await send(ws, type="cancel", request_id="never")
    await send(ws, type="cancel")
    await still_serves(ws)


async def test_each_request_ends_once_however_late_it_is_cancelled(ws: ClientConnection) -> None:
    for number in range(40):
        name = f"r{number}"
        await send(ws, request_id=name, **chat_body(max_tokens=number % 4 + 1))
        if number % 2:
            await receive(ws)
        await send(ws, type="cancel", request_id=name)
        while not ("error" in (frame := await receive(ws)) or frame["choices"][0]["finish_reason"]):
            pass
        assert frame["request_id"] == name, "a second end of an earlier request"
    await still_serves(ws)


# --- errors


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"model": "nobody"}, "model_not_found", "model"),
        ({"temperature": 9}, "invalid_value", "temperature"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "unsupported_parameter", "tools"),
        ({"stream": False}, "invalid_value", "stream"),
        ({"messages": [{"role": "user", "content": BLOCKED}]}, "content_filter", "messages"),
        ({"type": "response.create"}, "invalid_value", "type"),
        ({"max_tokens": 2_000_000}, "context_length_exceeded", "messages"),
    ],
)
async def test_an_error_ends_its_request_alone(
    ws: ClientConnection, fields: dict[str, Any], code: str, param: str
) -> None:
    await send(ws, request_id="good", **chat_body("good", model="slow/model", max_tokens=2))
    await send(ws, request_id="bad", **(chat_body() | fields))
    frame = await receive(ws)
    while "error" not in frame:
        frame = await receive(ws)
    assert (frame["request_id"], frame["error"]["code"], frame["error"]["param"]) == ("bad", code, param)
    assert answer_to("good", 2).endswith(await read_answer(ws))
    await still_serves(ws)


async def test_a_connection_holds_a_bounded_number_of_requests(ws: ClientConnection) -> None:
    for number in range(MAX_OPEN_REQUESTS + 1):
        await send(ws, request_id=f"r{number}", **chat_body(model="slow/model", max_tokens=1000))
    while "error" not in (frame := await receive(ws)):
        pass
    assert frame["error"]["code"] == "rate_limit_exceeded"
    assert frame["request_id"] == f"r{MAX_OPEN_REQUESTS}"


async def test_a_spent_quota_is_an_error_of_the_turn(dial: Connect, make_key: MakeKey) -> None:
    async with dial(additional_headers={"Authorization": f"Bearer {make_key('one-request')}"}) as ws:
        await send(ws, **chat_body(max_tokens=2))
        assert await read_answer(ws) == answer_to("hello", 2)
        for _ in range(2):
            await send(ws, **chat_body(max_tokens=2))
            await receive_error(ws, "rate_limit_exceeded")


async def test_a_message_above_the_limit_closes_with_1009(server: PenstockProcess, ws: ClientConnection) -> None:
    await send(ws, request_id="x", **chat_body(model="slow/model", max_tokens=10_000))
    await ws.send("x" * (2**20 + 1))
    with pytest.raises(ConnectionClosedError) as closed:
        await read_to_the_end(ws)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009
    server.wait_for_metric("penstock_requests_running", 0)


async def test_a_message_of_the_limit_is_read(ws: ClientConnection) -> None:
    body = json.dumps(chat_body("x", max_tokens=1, user="u"))
    await ws.send(body.replace('"u"', json.dumps("u" * (2**20 - len(body)))))
    await read_answer(ws)


# --- who may connect


async def _refused(connection: connect, code: str) -> None:
    async with connection as ws:
        await receive_error(ws, code)
        with pytest.raises(ConnectionClosed) as closed:
            await ws.recv()
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, code)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "invalid_api_key"),
        ({"Authorization": "Bearer wrong-key-0123456789"}, "invalid_api_key"),
        ({"Authorization": f"Basic {API_KEY}"}, "invalid_api_key"),
        ({"Authorization": f"Bearer {ADMIN_KEY}"}, "permission_denied"),
    ],
)
async def test_a_wrong_key_is_told_why_and_closed(dial: Connect, headers: dict[str, str], code: str) -> None:
    await _refused(dial(additional_headers=headers), code)


async def test_a_key_in_the_query_is_none(server: PenstockProcess) -> None:
    await _refused(connect(f"{server.websocket_url}?api_key={API_KEY}&key={API_KEY}"), "invalid_api_key")
    assert API_KEY not in server.log.read_text()


@pytest.mark.parametrize("path", ["/v1/nothing", "/", "/v1/chat/completions/", "/healthz"])
async def test_an_unknown_path(server: PenstockProcess, path: str) -> None:
    url = server.root_url.replace("http", "ws", 1) + path
    await _refused(connect(url, additional_headers=BEARER), "unknown_url")


async def test_a_key_as_subprotocol_is_never_echoed(dial: Connect) -> None:
    for offered, chosen in ((["penstock"], "penstock"), ([], None)):
        key = f"openai-insecure-api-key.{API_KEY}"
        async with dial(additional_headers={}, subprotocols=[*offered, key]) as ws:
            assert ws.subprotocol == chosen
            assert API_KEY not in str(ws.response.headers)
            await still_serves(ws)
    await _refused(dial(additional_headers={}, subprotocols=["penstock"]), "invalid_api_key")
    wrong = "openai-insecure-api-key.wrong-key-0123456789"
    await _refused(dial(additional_headers={}, subprotocols=["penstock", wrong]), "invalid_api_key")


async def test_pages_of_allowed_origins_may_connect(server: PenstockProcess, dial: Connect) -> None:
    for origin in (ORIGIN, server.root_url):  # ours: a page that this host served
        async with dial(origin=origin) as ws:
            await still_serves(ws)


@pytest.mark.parametrize(
    "origin", ["https://evil.example", f"{ORIGIN}.evil.example", "null", "http://[", "file://", ""]
)
async def test_pages_of_other_origins_may_not(server: PenstockProcess, dial: Connect, origin: str) -> None:
    await _refused(dial(origin=origin), "origin_not_allowed")


async def test_a_revoked_key_ends_the_connection_at_its_next_request(
    dial: Connect, admin: httpx.Client, new_key: Callable[..., dict[str, Any]]
) -> None:
    made = new_key()
    async with dial(additional_headers={"Authorization": f"Bearer {made['key']}"}) as ws:
        await still_serves(ws)
        (await asyncio.to_thread(admin.delete, f"/admin/v1/keys/{made['id']}")).raise_for_status()
        await send(ws, request_id="x", **chat_body())
        assert (await receive_error(ws, "invalid_api_key"))["request_id"] == "x"
        with pytest.raises(ConnectionClosedError) as closed:
            await ws.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008


async def test_features_of_a_key_hold_here_too(dial: Connect, make_key: MakeKey) -> None:
    async with dial(additional_headers={"Authorization": f"Bearer {make_key(features=['chat', 'stream'])}"}) as ws:
        await send(ws, **chat_body())
        frame = await receive_error(ws, "permission_denied")
        assert "'websocket'" in frame["error"]["message"]


# --- leaving


async def test_a_client_that_leaves_frees_its_sequences(server: PenstockProcess, dial: Connect) -> None:
    async with dial() as ws:
        for name in ("x", "y"):
            await send(ws, request_id=name, **chat_body(model="slow/model", max_tokens=10_000))
        server.wait_for_metric("penstock_requests_running", 2)
        ws.transport.abort()  # without a word
    server.wait_for_metric("penstock_requests_running", 0)
    async with dial() as ws:
        await send(ws, **chat_body(model="slow/model", max_tokens=10_000))
        await receive(ws)
        await ws.close()
    server.wait_for_metric("penstock_requests_running", 0)
    assert "Traceback" not in server.log.read_text()
