"""Anthropic's own client, unchanged, against a real server: messages, streams, counts, models, classes of errors."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import pytest

from tests.clients import expected_text
from tests.penstock_process import ADMIN_KEY, API_KEY, PenstockProcess
from tests.wire.conftest import BLOCKED, MakeKey
from tests.wire.test_death import CONFIG

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
BODY: Any = {"model": "echo", "messages": HELLO, "max_tokens": 12}


def sdk_of(server: PenstockProcess, key: str = API_KEY, **options: Any) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.root_url, api_key=key, **({"max_retries": 0} | options))


@pytest.fixture(scope="module")
def sdk(server: PenstockProcess) -> anthropic.Anthropic:
    return sdk_of(server)


def test_create(sdk: anthropic.Anthropic) -> None:
    made = sdk.messages.create(**BODY)
    assert (made.id[:4], made.type, made.role, made.model) == ("msg-", "message", "assistant", "echo@1")
    (block,) = made.content
    assert block.type == "text"
    assert block.text == expected_text("hello", 12)
    assert (made.stop_reason, made.stop_sequence) == ("max_tokens", None)
    assert (made.usage.input_tokens, made.usage.output_tokens) == (5, 12)
    assert str(made._request_id).startswith("req-")


def test_all_that_is_told_reaches_the_model(sdk: anthropic.Anthropic) -> None:
    """The deterministic engine's template is the contents alone."""
    blocks = [{"type": "text", "text": "b"}, {"type": "text", "text": "c", "cache_control": {"type": "ephemeral"}}]
    turns: list[Any] = [
        {"role": "user", "content": blocks},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "f", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "d"}]},
    ]
    made = sdk.messages.create(model="echo", max_tokens=6, system="a", messages=turns)
    assert made.content[0].to_dict()["text"] == expected_text("abcd", 6)
    counted = sdk.messages.count_tokens(model="echo", system="a", messages=turns)
    assert counted.input_tokens == made.usage.input_tokens == 4


async def test_with_the_async_client(server: PenstockProcess) -> None:
    async with anthropic.AsyncAnthropic(base_url=server.root_url, auth_token=API_KEY, api_key=None) as sdk:
        async with sdk.messages.stream(**BODY) as stream:
            parts = [text async for text in stream.text_stream]
        assert "".join(parts) == expected_text("hello", 12)


def test_stream(sdk: anthropic.Anthropic) -> None:
    with sdk.messages.stream(**BODY) as stream:
        kinds = [event.type for event in stream if event.type not in ("content_block_delta", "text")]
        made = stream.get_final_message()
        assert str(stream.request_id).startswith("req-")
    assert kinds == ["message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop"]
    assert made.content[0].to_dict()["text"] == expected_text("hello", 12)
    assert (made.stop_reason, made.usage.input_tokens, made.usage.output_tokens) == ("max_tokens", 5, 12)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_which_stop_sequence(sdk: anthropic.Anthropic, is_streamed: bool) -> None:
    whole = expected_text("hello", 12)
    body = BODY | {"stop_sequences": ["no such text", whole[4:7]]}
    if is_streamed:
        with sdk.messages.stream(**body) as stream:
            made: Any = stream.get_final_message()
    else:
        made = sdk.messages.create(**body)
    assert (made.stop_reason, made.stop_sequence) == ("stop_sequence", whole[4:7])
    assert made.content[0].text == whole[: whole.index(whole[4:7])]


def test_pings_keep_a_quiet_stream_alive(server: PenstockProcess) -> None:
    body = {"model": "slow/model", "messages": HELLO, "max_tokens": 2, "stream": True}
    with server.http() as client:
        data = client.post("/v1/messages", json=body).text
    assert 'event: ping\ndata: {"type":"ping"}\n\n' in data
    assert data.endswith('event: message_stop\ndata: {"type":"message_stop"}\n\n')


def test_models(sdk: anthropic.Anthropic) -> None:
    first = sdk.models.list(limit=2)
    assert (len(first.data), first.has_more, first.last_id) == (2, True, first.data[1].id)
    everything = list(sdk.models.list(limit=2))  # page by page
    assert [m.id for m in everything] == [m.id for m in sdk.models.list(limit=1000)]
    assert {"echo", "echo@2", "gpt-4", "slow/model"} <= {m.id for m in everything}
    before = sdk.models.list(limit=2, before_id=everything[3].id)
    assert [m.id for m in before.data] == [m.id for m in everything[1:3]]
    one = sdk.models.retrieve("gpt-4")
    assert (one.id, one.display_name, one.lifecycle) == ("gpt-4", "echo@1", "active")
    with pytest.raises(anthropic.BadRequestError, match="after_id"):
        sdk.models.list(after_id="nothing")
    with pytest.raises(anthropic.BadRequestError, match="anthropic-workspace-id"):
        sdk.models.list(workspace_id="w")
    with pytest.raises(anthropic.NotFoundError):
        sdk.models.retrieve("nothing")


def test_classes_of_errors(server: PenstockProcess, sdk: anthropic.Anthropic) -> None:
    def ask(client: anthropic.Anthropic = sdk, **fields: Any) -> Callable[[], Any]:
        return lambda: client.messages.create(**BODY | fields)

    cases: list[tuple[Callable[[], Any], type[anthropic.APIStatusError], str]] = [
        (ask(messages=[]), anthropic.BadRequestError, "invalid_request_error"),
        (ask(messages=[{"role": "user", "content": BLOCKED}]), anthropic.BadRequestError, "invalid_request_error"),
        (ask(model="echo@2", max_tokens=5000), anthropic.BadRequestError, "invalid_request_error"),
        (ask(thinking={"type": "adaptive"}), anthropic.BadRequestError, "invalid_request_error"),
        (ask(workspace_id="w"), anthropic.BadRequestError, "invalid_request_error"),
        (ask(model="vectors"), anthropic.BadRequestError, "invalid_request_error"),
        (ask(sdk_of(server, "sk-wrong-0123456789")), anthropic.AuthenticationError, "authentication_error"),
        (ask(sdk_of(server, ADMIN_KEY)), anthropic.PermissionDeniedError, "permission_error"),
        (ask(model="nothing"), anthropic.NotFoundError, "not_found_error"),
        (lambda: sdk.messages.batches.list(), anthropic.NotFoundError, "not_found_error"),
        (ask(system="x" * 5_000_000), anthropic.RequestTooLargeError, "request_too_large"),
        (
            lambda: sdk.messages.count_tokens(model="nothing", messages=HELLO),
            anthropic.NotFoundError,
            "not_found_error",
        ),
    ]
    for call, kind, name in cases:
        with pytest.raises(kind) as caught:
            call()
        body: Any = caught.value.body
        assert (body["type"], body["error"]["type"]) == ("error", name)
        assert body["request_id"] == caught.value.request_id


def test_a_limit_and_its_headers(server: PenstockProcess, make_key: MakeKey) -> None:
    sdk = sdk_of(server, make_key("one-request"))
    answer = sdk.messages.with_raw_response.create(**BODY)
    assert answer.headers["anthropic-ratelimit-requests-limit"] == "1"
    assert answer.headers["anthropic-ratelimit-requests-remaining"] == "0"
    with pytest.raises(anthropic.RateLimitError) as caught:
        sdk.messages.create(**BODY)
    assert int(caught.value.response.headers["retry-after"]) > 0
    assert caught.value.type == "rate_limit_error"
    assert sdk.messages.count_tokens(model="echo", messages=HELLO).input_tokens == 5  # costs nothing


def test_a_key_for_messages_alone(server: PenstockProcess, make_key: MakeKey) -> None:
    key = make_key(features=["messages"])
    assert sdk_of(server, key).messages.create(**BODY).content
    with server.http(key) as client:
        assert client.post("/v1/chat/completions", json=BODY).status_code == 403
    with pytest.raises(anthropic.PermissionDeniedError):
        sdk_of(server, make_key(features=["chat"])).messages.create(**BODY)
    with pytest.raises(anthropic.PermissionDeniedError, match="'messages'"):
        sdk_of(server, make_key(features=["chat"])).messages.count_tokens(model="echo", messages=HELLO)


def test_one_key_in_one_header(server: PenstockProcess) -> None:
    with server.http(None) as client:
        for path in ("/v1/messages", "/v1/chat/completions"):
            assert client.post(path, json=BODY, headers={"x-api-key": API_KEY}).status_code == 200
            both = {"x-api-key": API_KEY, "authorization": f"Bearer {API_KEY}"}
            assert client.post(path, json=BODY, headers=both).status_code == 401
            assert client.post(path, json=BODY, headers={"x-api-key": ""}).status_code == 401
        assert client.get("/admin/v1/accounts", headers={"x-api-key": API_KEY}).status_code == 403


@pytest.fixture
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PenstockProcess]:
    with PenstockProcess(tmp_path_factory.mktemp("messages"), CONFIG) as running:
        yield running


def test_a_stream_that_is_cut_raises(mortal: PenstockProcess) -> None:
    sdk = sdk_of(mortal)
    stream = sdk.messages.create(**BODY | {"max_tokens": 1000}, stream=True)
    next(stream)
    for pid in mortal.worker_pids():
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(anthropic.APIStatusError) as caught:
        list(stream)
    body: Any = caught.value.body
    assert (body["type"], body["error"]["type"]) == ("error", "overloaded_error")
    with pytest.raises(anthropic.OverloadedError):
        sdk.messages.create(**BODY)
    assert sdk_of(mortal, max_retries=20).messages.create(**BODY).content
    mortal.wait_for_metric("penstock_requests_running", 0)
