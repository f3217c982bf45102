"""`/v1/responses` over a WebSocket, as `client.responses.connect()` of OpenAI's own client speaks."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import openai
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from engines.fake_tokens import fake_answer
from server.websocket import MAX_OPEN_REQUESTS
from tests.penstock_process import ADMIN_KEY, API_KEY, PenstockProcess
from tests.wire.conftest import MakeKey

Dial = Callable[..., ClientConnection]
TERMINAL = ("response.completed", "response.incomplete", "response.failed", "error")


def answer_to(prompt: str, num_tokens: int) -> str:
    return bytes(fake_answer(list(prompt.encode()), num_tokens)).decode()


@pytest.fixture(scope="module")
def sdk(server: PenstockProcess) -> openai.OpenAI:
    return server.sdk()


@pytest.fixture
def dial(server: PenstockProcess) -> Dial:
    def make(key: str = API_KEY, **options: Any) -> ClientConnection:
        url = server.websocket_url.replace("/chat/completions", "/responses")
        return connect(url, additional_headers={"Authorization": f"Bearer {key}"}, **options)

    return make


def send(ws: ClientConnection, text: Any = "hello", **fields: Any) -> None:
    event = {"type": "response.create", "model": "echo", "input": text, "max_output_tokens": 4}
    ws.send(json.dumps({name: value for name, value in (event | fields).items() if value is not None}))


def read(ws: ClientConnection) -> list[dict[str, Any]]:
    """One response's events."""
    events = [json.loads(ws.recv())]
    while events[-1]["type"] not in TERMINAL:
        events.append(json.loads(ws.recv()))
    return events


def ask(ws: ClientConnection, text: Any = "hello", **fields: Any) -> dict[str, Any]:
    """The response."""
    send(ws, text, **fields)
    response: dict[str, Any] = read(ws)[-1]["response"]
    return response


def refusal(ws: ClientConnection, text: Any = "hello", **fields: Any) -> dict[str, Any]:
    send(ws, text, **fields)
    (event,) = read(ws)
    assert event["type"] == "error"
    return event


def said(response: dict[str, Any]) -> str:
    text: str = response["output"][0]["content"][0]["text"]
    return text


def test_the_sdk_s_connection(sdk: openai.OpenAI) -> None:
    with sdk.responses.connect() as connection:
        for prompt in ("hello", "again"):
            connection.response.create(model="echo", input=prompt, max_output_tokens=4)
            deltas = ""
            for event in connection:
                if event.type == "response.output_text.delta":
                    deltas += event.delta
                elif event.type == "response.incomplete":
                    assert event.response.output_text == answer_to(prompt, 4)
                    break
            assert deltas == answer_to(prompt, 4)


async def test_the_async_sdk_s_connection(server: PenstockProcess) -> None:
    async with server.async_sdk() as sdk, sdk.responses.connect() as connection:
        await connection.response.create(model="echo", input="hello", max_output_tokens=4)
        types = []
        async for event in connection:
            types.append(event.type)
            if event.type == "response.incomplete":
                break
        assert types[0] == "response.created"


def test_its_events_are_those_of_a_stream(dial: Dial, sdk: openai.OpenAI) -> None:
    with dial() as ws:
        send(ws)
        events = read(ws)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    streamed = sdk.responses.create(model="echo", input="hello", max_output_tokens=4, stream=True)
    assert {event["type"] for event in events} == {event.type for event in streamed}
    assert sdk.responses.retrieve(events[-1]["response"]["id"]).output_text == answer_to("hello", 4)


def test_requests_run_one_after_another(dial: Dial) -> None:
    with dial() as ws:
        for prompt in "abc":
            send(ws, prompt, stream_id=f"lane-{prompt}")
        for prompt in "abc":
            events = read(ws)
            assert {event["stream_id"] for event in events} == {f"lane-{prompt}"}
            assert said(events[-1]["response"]) == answer_to(prompt, 4)


def test_a_conversation_that_is_not_stored_goes_on_here_alone(dial: Dial, sdk: openai.OpenAI) -> None:
    with dial() as ws:
        first = ask(ws, "one", store=False)
        second = ask(ws, "two", store=False, previous_response_id=first["id"])
        assert said(second) == answer_to("one" + said(first) + "two", 4)
        third = ask(ws, "three", previous_response_id=second["id"])
        with dial() as other:
            missing = refusal(other, store=False, previous_response_id=second["id"])
    assert missing["error"]["code"] == "previous_response_not_found"
    assert missing["error"]["param"] == "previous_response_id"
    assert missing["status"] == 404
    fourth = sdk.responses.create(model="echo", input="four", max_output_tokens=4, previous_response_id=third["id"])
    context = "one" + said(first) + "two" + said(second) + "three" + said(third) + "four"
    assert fourth.output_text == answer_to(context, 4)


def test_one_that_was_deleted_is_not_gone_on_with(dial: Dial, sdk: openai.OpenAI) -> None:
    with dial() as ws:
        first = ask(ws, "one")
        second = ask(ws, "two", previous_response_id=first["id"])
        assert said(second) == answer_to("one" + said(first) + "two", 4)
        sdk.responses.delete(second["id"])
        missing = refusal(ws, "three", previous_response_id=second["id"])
        assert missing["error"]["code"] == "previous_response_not_found"


def test_one_with_which_a_request_has_failed_is_forgotten(dial: Dial) -> None:
    orphan = [{"type": "function_call_output", "call_id": "c", "output": ""}]
    with dial() as ws:
        first = ask(ws, "one", store=False)
        assert refusal(ws, orphan, store=False, previous_response_id=first["id"])["status"] == 400
        again = refusal(ws, store=False, previous_response_id=first["id"])
        assert again["error"]["code"] == "previous_response_not_found"
        assert said(ask(ws)) == answer_to("hello", 4)


def test_a_warm_up_generates_nothing_and_is_gone_on_with(dial: Dial) -> None:
    with dial() as ws:
        send(ws, "one", generate=False, store=False)
        events = read(ws)
        assert [event["type"] for event in events] == ["response.created", "response.in_progress", "response.completed"]
        response = events[-1]["response"]
        assert (response["output"], response["usage"]["total_tokens"]) == ([], 0)
        assert said(ask(ws, "two", previous_response_id=response["id"])) == answer_to("onetwo", 4)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"background": True}, "background", "invalid_value"),
        ({"stream": False}, "stream", "invalid_value"),
        ({"model": "nobody"}, "model", "model_not_found"),
        ({"model": None}, "model", "missing_required_parameter"),
        ({"type": "response.cancel"}, "type", "invalid_value"),
        ({"conversation": "c"}, "conversation", "unsupported_parameter"),
    ],
)
def test_errors_are_events_and_the_connection_stays(dial: Dial, fields: Any, param: str, code: str) -> None:
    with dial() as ws:
        error = refusal(ws, **fields, stream_id="lane")
        assert error.keys() == {"type", "status", "error", "stream_id"}
        assert (error["error"]["param"], error["error"]["code"]) == (param, code)
        for garbage in ("", "[", "[]", "1", '{"type": 1, "previous_response_id": [1]}', b"\xff\xfe"):
            ws.send(garbage)
            assert read(ws)[0]["status"] == 400
        assert said(ask(ws)) == answer_to("hello", 4)


def test_a_limit_is_told_with_its_headers(dial: Dial, make_key: MakeKey) -> None:
    with dial(make_key("one-request")) as ws:
        ask(ws)
        error = refusal(ws)
        assert (error["status"], error["error"]["code"]) == (429, "rate_limit_exceeded")
        assert int(error["error"]["headers"]["retry-after-ms"]) > 0


def test_responses_can_t_be_steered(sdk: openai.OpenAI) -> None:
    with sdk.responses.connect() as connection:
        connection.response.steer(input="stop", previous_response_id="resp_1")
        event: Any = connection.recv()
        assert (event.type, event.error.code) == ("response.steer.failed", "steering_not_supported")


def test_too_many_requests_that_wait_are_refused(dial: Dial) -> None:
    with dial() as ws:
        for _ in range(MAX_OPEN_REQUESTS + 1):
            send(ws, model="slow/model", max_output_tokens=1)
        events = [json.loads(ws.recv())]
        while events[-1]["type"] != "error":
            events.append(json.loads(ws.recv()))
        assert events[-1]["status"] == 429


def test_who_may_not_connect_is_told_why(dial: Dial, make_key: MakeKey) -> None:
    for key, status in (("sk-wrong-key-000000000", 401), (ADMIN_KEY, 403)):
        with dial(key) as ws:
            error = json.loads(ws.recv())
            assert (error["type"], error["status"]) == ("error", status)
            with pytest.raises(ConnectionClosed) as caught:
                ws.recv()
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1008
    with dial(make_key(features=["chat"])) as ws:
        assert refusal(ws)["status"] == 403


def test_a_connection_that_ends_stops_its_response(dial: Dial, server: PenstockProcess, sdk: openai.OpenAI) -> None:
    with dial() as ws:
        send(ws, model="slow/model", max_output_tokens=1000)
        response_id = json.loads(ws.recv())["response"]["id"]
    server.wait_for_metric("penstock_requests_running", 0)
    assert sdk.responses.retrieve(response_id).status in ("in_progress", "cancelled")
