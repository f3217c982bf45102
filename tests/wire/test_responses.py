"""`/v1/responses` as OpenAI's own client uses it. What it is answered is judged by `tests.judge` besides."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response

from engines.fake_tokens import fake_answer
from tests.penstock_process import PenstockProcess
from tests.wire.conftest import BLOCKED, MakeKey, check_error

CREATED = ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
CLOSED = ["response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete"]
BACKGROUND: Any = {"model": "echo", "input": "hello", "max_output_tokens": 4, "background": True}


def answer_to(prompt: str, num_tokens: int) -> str:
    return bytes(fake_answer(list(prompt.encode()), num_tokens)).decode()


@pytest.fixture(scope="module")
def sdk(server: PenstockProcess) -> openai.OpenAI:
    return server.sdk()


@pytest.fixture(scope="module")
def other(server: PenstockProcess, make_key: MakeKey) -> openai.OpenAI:
    """Another account's."""
    return server.sdk(api_key=make_key())


def create(sdk: openai.OpenAI, text: Any = "hello", **fields: Any) -> Response:
    made: Response = sdk.responses.create(**{"model": "echo", "input": text, "max_output_tokens": 8, **fields})
    return made


def ended(sdk: openai.OpenAI, response_id: str) -> Response:
    deadline = time.monotonic() + 30
    while (found := sdk.responses.retrieve(response_id)).status in ("queued", "in_progress"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


# -- create ----------------------------------------------------------------------------------------------------


def test_create(sdk: openai.OpenAI) -> None:
    made = create(sdk, metadata={"k": "v"}, temperature=0.5, user="me")
    assert made.id.startswith("resp_")
    assert (made.object, made.model, made.status) == ("response", "echo@1", "incomplete")
    assert made.incomplete_details is not None
    assert made.incomplete_details.reason == "max_output_tokens"
    assert made.output_text == answer_to("hello", 8)
    assert made.output[0].id is not None
    assert made.output[0].id.startswith("msg_")
    assert (made.metadata, made.temperature, made.user, made.max_output_tokens) == ({"k": "v"}, 0.5, "me", 8)
    assert made.usage is not None
    assert (made.usage.input_tokens, made.usage.output_tokens, made.usage.total_tokens) == (5, 8, 13)
    assert made._request_id is not None


async def test_create_and_stream_with_the_async_client(server: PenstockProcess) -> None:
    async with server.async_sdk() as sdk:
        made = await sdk.responses.create(model="echo", input="hello", max_output_tokens=4)
        assert made.output_text == answer_to("hello", 4)
        stream = await sdk.responses.create(model="echo", input="hello", max_output_tokens=4, stream=True)
        assert [event.type async for event in stream][-1] == "response.incomplete"
        async with sdk.responses.stream(model="echo", input="hello", max_output_tokens=4) as events:
            deltas = [event.delta async for event in events if event.type == "response.output_text.delta"]
        assert "".join(deltas) == answer_to("hello", 4)


def test_instructions_and_items(sdk: openai.OpenAI) -> None:
    items = [
        {"role": "system", "content": "b"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "c"}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "d"},
    ]
    made = create(sdk, items, instructions="a")
    assert made.output_text == answer_to("a\n\nbcd", 8)
    assert made.instructions == "a"


def test_stream(sdk: openai.OpenAI) -> None:
    events = list(sdk.responses.create(model="echo", input="hello", max_output_tokens=8, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))  # type: ignore[union-attr]
    types = [event.type for event in events]
    assert types[:4] == CREATED
    assert types[-4:] == CLOSED
    assert set(types[4:-4]) == {"response.output_text.delta"}
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == answer_to(
        "hello", 8
    )
    last: Any = events[-1]
    assert last.response.output_text == answer_to("hello", 8)
    assert last.response.usage.output_tokens == 8


def test_logprobs(sdk: openai.OpenAI) -> None:
    asked: Any = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    made = create(sdk, **asked)
    part: Any = made.output[0].content[0]  # type: ignore[union-attr, index]
    assert b"".join(bytes(token.bytes) for token in part.logprobs).decode() == made.output_text
    assert {len(token.top_logprobs) for token in part.logprobs} == {2}
    events = list(sdk.responses.create(model="echo", input="hello", max_output_tokens=8, stream=True, **asked))
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    told = [(token.token, token.logprob) for event in deltas for token in event.logprobs]
    assert told == [(token.token, token.logprob) for token in part.logprobs]
    assert sdk.responses.retrieve(made.id, include=asked["include"]).to_dict() == made.to_dict()
    without = create(sdk)
    assert without.output[0].content[0].logprobs == []  # type: ignore[union-attr, index]
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.responses.retrieve(without.id, include=asked["include"])
    assert caught.value.param == "include"
    assert sdk.responses.retrieve(without.id, include=["reasoning.encrypted_content"]).id == without.id


def test_frames(http: httpx.Client) -> None:
    """Named as their types, ended by [DONE]; deltas padded where that is asked for."""
    body = {"model": "echo", "input": "hello", "max_output_tokens": 8, "stream": True}
    answer = http.post("/v1/responses", json=body | {"stream_options": {"include_obfuscation": True}})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *frames, done, empty = answer.text.replace(": ping\n\n", "").split("\n\n")
    assert (done, empty) == ("data: [DONE]", "")
    sizes = set()
    for frame in frames:
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        if event["type"].endswith(".delta"):
            sizes.add((len(event["delta"].encode()) + len(event["obfuscation"])) % 16)
    assert sizes == {0}


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"conversation": "conv_1"}, "conversation", "unsupported_parameter"),
    ({"prompt": {"id": "p"}}, "prompt", "unsupported_parameter"),
    ({"text": {"verbosity": "low"}}, "text.verbosity", "unsupported_parameter"),
    ({"text": {"format": {"type": "json_object"}}}, "text.format", "unsupported_parameter"),
    ({"tools": [{"type": "web_search"}]}, "tools.0", "invalid_value"),
    ({"tools": [{"type": "function", "name": "f", "parameters": {}}]}, "tools", "unsupported_parameter"),
    ({"reasoning": {"effort": "high"}}, "reasoning.effort", "unsupported_parameter"),
    ({"background": True, "store": False}, "background", "invalid_value"),
    ({"max_tokens": 5}, "max_tokens", "unsupported_parameter"),
    ({"input": None}, "input", "missing_required_parameter"),
    ({"input": BLOCKED}, "input", "content_filter"),
    ({"model": "echo@2", "input": "x" * 5000}, "input", "context_length_exceeded"),
    ({"input": [{"type": "computer_call"}]}, "input.0", "invalid_value"),
    ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input.0.content.0", "invalid_value"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input", "unsupported_content"),
    ({"input": [{"type": "function_call_output", "call_id": "c", "output": ""}]}, "input", "invalid_value"),
    ({"input": [{"type": "compaction", "encrypted_content": "x"}]}, "input", "invalid_encrypted_content"),
]


@pytest.mark.parametrize(("fields", "param", "code"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_refused_is_named(http: httpx.Client, fields: dict[str, Any], param: str, code: str) -> None:
    answer = http.post("/v1/responses", json={"model": "echo", "input": "hello"} | fields)
    assert check_error(answer, 400, code)["param"] == param


def test_truncation_drops_the_oldest(sdk: openai.OpenAI) -> None:
    items: Any = [{"role": "user", "content": f"{i:04}"} for i in range(1500)]
    made = create(sdk, items, model="echo@2", instructions="first", truncation="auto")
    assert made.usage is not None
    assert made.usage.input_tokens + 8 <= 4096
    assert made.usage.input_tokens > 4096 - 8 - 2 * 4
    kept = "".join(f"{i:04}" for i in range(1500))[-(made.usage.input_tokens - 5) :]
    assert made.output_text == answer_to("first" + kept, 8)


def test_a_feature_of_its_own(server: PenstockProcess, make_key: MakeKey) -> None:
    without = server.sdk(api_key=make_key(features=["chat"]))
    responses = without.responses
    with pytest.raises(openai.PermissionDeniedError):
        create(without)
    for call in (responses.retrieve, responses.delete, responses.cancel, responses.input_items.list):
        with pytest.raises(openai.PermissionDeniedError):
            call("resp_1")
    assert create(server.sdk(api_key=make_key(features=["responses"]))).id


# -- what is stored --------------------------------------------------------------------------------------------


def test_what_is_stored_is_retrieved_until_it_is_deleted(sdk: openai.OpenAI) -> None:
    made = create(sdk)
    assert sdk.responses.retrieve(made.id).to_dict() == made.to_dict()
    sdk.responses.delete(made.id)
    for call in (sdk.responses.retrieve, sdk.responses.delete, sdk.responses.cancel, sdk.responses.input_items.list):
        with pytest.raises(openai.NotFoundError) as caught:
            call(made.id)
        assert caught.value.code == "response_not_found"


@pytest.mark.parametrize("response_id", ["%00", "resp_" + "x" * 1000, "%F0%9F%90%9F", "resp_1%2F2"])
def test_ids_of_nothing(http: httpx.Client, response_id: str) -> None:
    for method in ("GET", "DELETE"):
        check_error(http.request(method, f"/v1/responses/{response_id}"), 404)


def test_what_is_not_to_be_stored_is_not(sdk: openai.OpenAI) -> None:
    made = create(sdk, store=False)
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(made.id)
    with pytest.raises(openai.NotFoundError) as caught:
        create(sdk, previous_response_id=made.id)
    assert (caught.value.code, caught.value.param) == ("previous_response_not_found", "previous_response_id")


def test_another_account_s_does_not_exist(sdk: openai.OpenAI, other: openai.OpenAI) -> None:
    made = create(sdk, [{"id": "msg_own", "role": "user", "content": "secret"}])
    responses = other.responses
    for call in (responses.retrieve, responses.delete, responses.cancel, responses.input_items.list):
        with pytest.raises(openai.NotFoundError):
            call(made.id)
    with pytest.raises(openai.NotFoundError):
        create(other, previous_response_id=made.id)
    with pytest.raises(openai.NotFoundError) as caught:
        create(other, [{"type": "item_reference", "id": "msg_own"}])
    assert caught.value.code == "item_not_found"
    assert sdk.responses.retrieve(made.id).id == made.id


def test_a_stream_is_stored_with_its_events(sdk: openai.OpenAI) -> None:
    events = list(sdk.responses.create(model="echo", input="hello", max_output_tokens=8, stream=True))
    last: Any = events[-1]
    assert sdk.responses.retrieve(last.response.id).to_dict() == last.response.to_dict()
    again = list(sdk.responses.retrieve(last.response.id, stream=True))
    assert [event.to_dict() for event in again] == [event.to_dict() for event in events]
    rest = list(sdk.responses.retrieve(last.response.id, stream=True, starting_after=5))
    assert [event.to_dict() for event in rest] == [event.to_dict() for event in events[6:]]


def test_a_stream_is_told_from_beyond_its_end(sdk: openai.OpenAI, http: httpx.Client) -> None:
    events = list(sdk.responses.create(model="echo", input="hello", max_output_tokens=8, stream=True))
    last: Any = events[-1]
    assert list(sdk.responses.retrieve(last.response.id, stream=True, starting_after=2**31 - 1)) == []
    answer = http.get(f"/v1/responses/{last.response.id}", params={"stream": "true", "starting_after": 2**63})
    assert check_error(answer, 400)["param"] == "starting_after"


def test_one_that_is_deleted_while_it_is_streamed_fails_with_all_its_numbers(sdk: openai.OpenAI) -> None:
    stream = iter(sdk.responses.create(model="slow/model", input="x", max_output_tokens=8, stream=True))
    events = [next(stream) for _ in range(7)]  # by then it is stored
    first: Any = events[0]
    sdk.responses.delete(first.response.id)
    events += stream
    assert events[-1].type == "response.failed"
    assert [event.sequence_number for event in events] == list(range(len(events)))  # type: ignore[union-attr]
    assert "response.output_item.done" in {event.type for event in events}


def test_one_that_was_made_whole_has_no_stream(sdk: openai.OpenAI) -> None:
    made = create(sdk)
    with pytest.raises(openai.BadRequestError):
        sdk.responses.retrieve(made.id, stream=True)
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.responses.retrieve(made.id, starting_after=1)
    assert caught.value.param == "starting_after"


def test_a_conversation_goes_on(sdk: openai.OpenAI) -> None:
    first = create(sdk, "one", instructions="not carried over")
    second = create(sdk, "two", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    context = "one" + first.output_text + "two"
    assert second.output_text == answer_to(context, 8)
    third = create(sdk, "three", previous_response_id=second.id, instructions="new")
    assert third.output_text == answer_to("new" + context + second.output_text + "three", 8)
    sdk.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        create(sdk, "four", previous_response_id=third.id)


def test_items_are_referred_to(sdk: openai.OpenAI) -> None:
    first = create(sdk, "one")
    item: Any = {"type": "item_reference", "id": first.output[0].id}
    assert create(sdk, [item]).output_text == answer_to(first.output_text, 8)


def test_an_answer_is_sent_back_as_it_came(sdk: openai.OpenAI) -> None:
    first = create(sdk, "one")
    context = [{"role": "user", "content": "one"}, *first.output, {"role": "user", "content": "two"}]
    assert create(sdk, context).output_text == answer_to("one" + first.output_text + "two", 8)


def test_input_items(sdk: openai.OpenAI) -> None:
    texts = [f"text {i}" for i in range(5)]
    made = create(sdk, [{"role": "user", "content": text} for text in texts])

    def pages(**options: Any) -> Iterator[str]:
        for item in sdk.responses.input_items.list(made.id, **options):
            yield item.content[0].text  # type: ignore[union-attr]

    assert list(pages(order="asc")) == texts
    assert list(pages()) == texts[::-1]
    assert list(pages(limit=2, order="asc")) == texts
    page = sdk.responses.input_items.list(made.id, limit=2, order="asc", include=["message.input_image.image_url"])
    assert (len(page.data), page.has_more) == (2, True)


# -- in the background -----------------------------------------------------------------------------------------


def test_one_in_the_background_answers_at_once(sdk: openai.OpenAI) -> None:
    made = sdk.responses.create(**BACKGROUND)
    assert (made.status, made.background, made.output) == ("queued", True, [])
    done = ended(sdk, made.id)
    assert (done.status, done.output_text) == ("incomplete", answer_to("hello", 4))
    assert done.usage is not None
    assert done.usage.output_tokens == 4


def test_its_stream_is_resumed(sdk: openai.OpenAI) -> None:
    stream = sdk.responses.create(**BACKGROUND | {"model": "slow/model"}, stream=True)
    events = [next(iter(stream)) for _ in range(4)]
    assert [event.type for event in events[:3]] == ["response.created", "response.queued", "response.in_progress"]
    stream.close()
    first: Any = events[0]
    events += sdk.responses.retrieve(first.response.id, stream=True, starting_after=3)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last: Any = events[-1]
    assert (last.type, last.response.output_text) == ("response.incomplete", answer_to("hello", 4))
    assert [event.to_dict() for event in sdk.responses.retrieve(first.response.id, stream=True)] == [
        event.to_dict() for event in events
    ]


def test_it_is_cancelled(sdk: openai.OpenAI) -> None:
    made = sdk.responses.create(**BACKGROUND | {"model": "slow/model", "max_output_tokens": 1000})
    stream = sdk.responses.retrieve(made.id, stream=True)
    next(iter(stream))
    cancelled = sdk.responses.cancel(made.id)
    assert cancelled.status == "cancelled"
    assert sdk.responses.cancel(made.id).to_dict() == cancelled.to_dict()
    last: Any = list(stream)[-1]
    assert (last.type, last.code) == ("error", "response_cancelled")
    assert [event.type for event in sdk.responses.retrieve(made.id, stream=True)][-1] == "error"


def test_only_those_in_the_background_are_cancelled(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        sdk.responses.cancel(create(sdk).id)


def test_one_that_is_deleted_stops(sdk: openai.OpenAI, server: PenstockProcess) -> None:
    made = sdk.responses.create(**BACKGROUND | {"model": "slow/model", "max_output_tokens": 1000})
    sdk.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(made.id)
    server.wait_for_metric("penstock_requests_running", 0)


def test_one_that_is_under_way_can_t_be_gone_on_with(sdk: openai.OpenAI) -> None:
    made = sdk.responses.create(**BACKGROUND | {"model": "slow/model", "max_output_tokens": 1000})
    with pytest.raises(openai.BadRequestError) as caught:
        create(sdk, previous_response_id=made.id)
    assert caught.value.code == "previous_response_not_ended"
    sdk.responses.cancel(made.id)


def test_a_refusal_is_told_at_once(server: PenstockProcess, make_key: MakeKey) -> None:
    sdk = server.sdk(api_key=make_key("one-request"))
    sdk.responses.create(**BACKGROUND)
    with pytest.raises(openai.RateLimitError):
        sdk.responses.create(**BACKGROUND)


def test_a_client_that_leaves_its_stream_ends_it(sdk: openai.OpenAI, server: PenstockProcess) -> None:
    stream = sdk.responses.create(model="slow/model", input="x", max_output_tokens=1000, stream=True)
    first: Any = next(iter(stream))
    stream.close()
    server.wait_for_metric("penstock_requests_running", 0)
    assert ended(sdk, first.response.id).status == "cancelled"


# -- counting --------------------------------------------------------------------------------------------------


def test_input_tokens(sdk: openai.OpenAI) -> None:
    counted = sdk.responses.input_tokens.count(model="echo", input="hello", instructions="abc")
    assert (counted.object, counted.input_tokens) == ("response.input_tokens", 8)
    assert sdk.responses.input_tokens.count(model="echo@2", input="x" * 5000).input_tokens == 5000
    made = create(sdk, "one")
    longer = sdk.responses.input_tokens.count(model="echo", input="two", previous_response_id=made.id)
    assert longer.input_tokens == len("one" + made.output_text + "two")


def test_input_tokens_of_what_truncation_leaves(sdk: openai.OpenAI) -> None:
    items: Any = [{"role": "user", "content": f"{i:04}"} for i in range(1500)]
    counted = sdk.responses.input_tokens.count(model="echo@2", input=items, truncation="auto")
    assert 4088 <= counted.input_tokens < 4096
    assert sdk.responses.input_tokens.count(model="echo@2", input=items).input_tokens == 6000


# -- compaction ------------------------------------------------------------------------------------------------


def test_a_compacted_conversation_goes_on(sdk: openai.OpenAI, other: openai.OpenAI) -> None:
    first = create(sdk, "launch on Tuesday")
    compacted = sdk.responses.compact(model="echo", input="and tell support", previous_response_id=first.id)
    assert (compacted.object, compacted.id[:5]) == ("response.compaction", "resp_")
    assert compacted.usage.output_tokens > 0
    (item,) = compacted.output
    assert item.type == "compaction"
    asked: Any = [item.to_dict(), {"role": "user", "content": "when?"}]
    counted = sdk.responses.input_tokens.count(model="echo", input=asked)
    assert counted.input_tokens > len("launch on Tuesdayand tell supportwhen?") + compacted.usage.output_tokens
    assert create(sdk, asked).usage is not None
    with pytest.raises(openai.BadRequestError) as caught:
        create(other, asked)
    assert caught.value.code == "invalid_encrypted_content"


def test_a_conversation_that_is_too_long_is_compacted_from_its_latest(sdk: openai.OpenAI) -> None:
    items: Any = [{"role": "user", "content": f"{i:04}" * 10} for i in range(500)]
    compacted = sdk.responses.compact(model="echo@2", input=items)
    assert 3000 < compacted.usage.input_tokens < 4096


def test_compaction_needs_a_model(http: httpx.Client) -> None:
    answer = http.post("/v1/responses/compact", json={"input": "x"})
    assert check_error(answer, 400, "missing_required_parameter")["param"] == "model"
