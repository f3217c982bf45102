"""Frames that no client of ours sends: each is answered or ends its connection, and the server never notices more."""

from __future__ import annotations

import asyncio
import json
import os
import struct
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import Opcode

from tests.penstock_process import API_KEY, PenstockProcess
from tests.wire.conftest import chat_body, connected, read_all

BEARER = {"Authorization": f"Bearer {API_KEY}"}
EXAMPLES = int(os.environ.get("WIRE_EXAMPLES", "150"))
GOOD = json.dumps(chat_body(model="echo@2", max_tokens=1))

NAMES = st.sampled_from(["type", "request_id", "model", "messages", "stream", "x"])
FRAMES = st.one_of(
    st.text(max_size=40),
    st.binary(max_size=40),
    st.sampled_from(
        [
            *("", "{", "[]", "null", "1", '"x"', "{}", '{"type":"cancel"}', '{"type":"cancel","request_id":1}', "\x00"),
            *(
                '{"request_id":"\\ud800"}',
                '{"request_id":""}',
                '{"request_id":{}}',
                '{"type":1}',
                '{"type":["cancel"]}',
            ),
            *('{"type":"cancel","request_id":"a"}', '{"request_id":"a"}', '{"type":"cancel","x":1}', "[" * 5000, GOOD),
            *(GOOD[:-1] + ',"request_id":"a"}', GOOD[:-1] + ',"stream":false}', GOOD[:-1] + ',"seed":NaN}', GOOD[:-2]),
            *(GOOD[:-1] + ',"request_id":"' + "y" * 129 + '"}', GOOD.encode(), b"\xff\xfe", b""),
        ]
    ),
    st.dictionaries(NAMES, st.none() | st.text(max_size=5) | st.integers()).map(json.dumps),
)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[*HealthCheck], database=None)
@given(frames=st.lists(FRAMES, min_size=1, max_size=12))
def test_any_sequence_of_frames(server: PenstockProcess, frames: list[str | bytes]) -> None:
    """Each answer is a chunk or an envelope, and the connection still serves after them."""
    asyncio.run(_converse(server, frames))


async def _converse(server: PenstockProcess, frames: list[str | bytes]) -> None:
    async with connect(server.websocket_url, additional_headers=BEARER) as ws:
        for frame in frames:
            await ws.send(frame)
        await ws.send(GOOD[:-1] + ',"request_id":"the last"}')
        while True:
            answer = json.loads(await ws.recv())
            assert ("error" in answer) != ("choices" in answer)
            if answer.get("request_id") == "the last" and answer["choices"][0]["finish_reason"]:
                return


# --- below the messages: frames that break the protocol itself


def _frame(opcode: int, payload: bytes, *, fin: bool = True, masked: bool = True, reserved: int = 0) -> bytes:
    head = bytes([fin << 7 | reserved << 4 | opcode, masked << 7 | min(len(payload), 126)])
    if len(payload) >= 126:
        head += struct.pack("!H", len(payload))
    return head + (bytes(4) if masked else b"") + payload


def _handshake(**changes: str) -> bytes:
    headers = {
        "Host": "test",
        "Authorization": f"Bearer {API_KEY}",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Version": "13",
    } | {name.replace("_", "-"): value for name, value in changes.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"GET /v1/chat/completions HTTP/1.1\r\n{lines}\r\n".encode("latin-1")


TEXT, CONTINUATION, CLOSE, PING = Opcode.TEXT, Opcode.CONT, Opcode.CLOSE, Opcode.PING
BROKEN: dict[str, tuple[bytes, int]] = {
    "not masked": (_frame(TEXT, b"{}", masked=False), 1002),
    "an unknown opcode": (_frame(3, b""), 1002),
    "a reserved bit": (_frame(TEXT, b"{}", reserved=2), 1002),
    "a continuation of nothing": (_frame(CONTINUATION, b"x"), 1002),
    "a text within a text": (_frame(TEXT, b"a", fin=False) + _frame(TEXT, b"b"), 1002),
    "a long ping": (_frame(PING, b"x" * 126), 1002),
    "a ping in fragments": (_frame(PING, b"x", fin=False), 1002),
    "text that is no UTF-8": (_frame(TEXT, b"\xff\xfe"), 1007),
    "a close code of nobody": (_frame(CLOSE, struct.pack("!H", 999)), 1002),
    "fragments above the limit": (
        b"".join(_frame(CONTINUATION if i else TEXT, b"x" * 60_000, fin=False) for i in range(20)),
        1009,
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_frame_closes_its_connection(server: PenstockProcess, name: str) -> None:
    data, code = BROKEN[name]
    with connected(server) as connection:
        connection.sendall(_handshake())
        assert connection.recv(65536).startswith(b"HTTP/1.1 101 ")
        connection.sendall(data)
        assert b"\x88" in (answer := read_all(connection))
        assert struct.pack("!H", code) in answer


@pytest.mark.parametrize(
    "changes",
    [
        {"Sec_WebSocket_Key": "short"},
        {"Sec_WebSocket_Version": "12"},
        {"Sec_WebSocket_Version": "x"},
        {"Sec_WebSocket_Protocol": "pen stock"},
        {"Sec_WebSocket_Protocol": ",,"},
        {"Sec_WebSocket_Extensions": "permessage-deflate; server_max_window_bits=99"},
        {"Sec_WebSocket_Extensions": ";;;"},
        {"Origin": "\xff"},
        {"Host": "[::1"},
        {"Authorization": "Bearer \xff"},
    ],
)
def test_an_odd_handshake_is_answered(server: PenstockProcess, changes: dict[str, str]) -> None:
    with connected(server) as connection:
        connection.sendall(_handshake(**changes))
        status = connection.recv(65536)[:12]
    assert status in (b"HTTP/1.1 101", b"HTTP/1.1 400", b"HTTP/1.1 426")


async def _abandon(ws: ClientConnection, how: str) -> None:
    if how == "abort":
        ws.transport.abort()
    elif how == "half":
        ws.transport.write(_frame(TEXT, b"{}" * 50)[:-20])
        ws.transport.abort()
    else:
        ws.transport.write(_frame(CLOSE, b""))
        ws.transport.abort()
    await ws.wait_closed()  # the socket is closed on the loop's next turn, and what follows blocks the loop


@pytest.mark.parametrize("how", ["abort", "half", "close"])
async def test_connections_that_break_are_forgotten(server: PenstockProcess, how: str) -> None:
    for number in range(10):
        ws = await connect(server.websocket_url, additional_headers=BEARER)
        for request_id in range(number):
            body: dict[str, Any] = chat_body(model="slow/model", max_tokens=10_000, request_id=str(request_id))
            await ws.send(json.dumps(body))
        await _abandon(ws, how)
    server.wait_for_metric("penstock_requests_running", 0)
    server.wait_for_metric("penstock_requests_waiting", 0)


async def test_the_server_still_serves_and_logged_no_fault(server: PenstockProcess) -> None:
    async with connect(server.websocket_url, additional_headers=BEARER) as ws:
        await ws.send(GOOD)
        assert "choices" in json.loads(await ws.recv())
    faults = [json.loads(line) for line in server.log.read_text().splitlines() if "Traceback" in line]
    assert [fault for fault in faults if "UTF-8" not in fault["message"]] == []  # uvicorn's own word of bad text


async def test_a_closed_connection_takes_no_more(server: PenstockProcess) -> None:
    async with connect(server.websocket_url, additional_headers=BEARER) as ws:
        await ws.close()
        with pytest.raises(ConnectionClosed):
            await ws.send(GOOD)
