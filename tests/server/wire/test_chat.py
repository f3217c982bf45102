"""server/wire/chat.py: what a chat completion request may say, and what it is told when it may not."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat.chat_completion import ChatCompletion
from openai.types.chat.chat_completion_chunk import ChatCompletionChunk
from openai.types.chat.completion_create_params import CompletionCreateParamsBase
from pydantic import ValidationError

from engines.types import FinishReason, Usage
from server.errors import APIError, InvalidRequest, UnsupportedParameter
from server.wire import chat
from server.wire.body import LONG_BODY_BYTES, parse_json
from server.wire.chat import (
    CancelFrame,
    ChatCompletionFrame,
    ChatCompletionRequest,
    frame_head,
    parse_frame,
)
from server.wire.chat_answer import ChatChunkEncoder, chat_completion
from server.wire.common import NEUTRAL, Answer, ResponseHead

HELLO = [{"role": "user", "content": "hello"}]
EXTRA_BODY = {
    "top_k", "min_p", "repetition_penalty", "ignore_eos", "min_tokens", "stop_token_ids", "chat_template_kwargs",
    "id_slot", "cache_prompt",
    "priority", "prompt_logprobs", "return_token_ids", "return_tokens_as_token_ids",
}  # fmt: skip


def parse(**fields: Any) -> ChatCompletionRequest:
    return parse_json(json.dumps({"model": "m", "messages": HELLO} | fields).encode(), ChatCompletionRequest)


def refusal(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(**fields)
    return caught.value


def test_every_field_of_the_sdk_and_of_extra_body_is_known() -> None:
    sdk = set(CompletionCreateParamsBase.__annotations__) | {"stream"}
    assert set(ChatCompletionRequest.model_fields) == sdk | EXTRA_BODY


@pytest.mark.parametrize("name", sorted(set(ChatCompletionRequest.model_fields) - {"model", "messages"}))
def test_null_is_silence(name: str) -> None:
    assert getattr(parse(**{name: None}), name) in (None, [])


VALID: list[dict[str, Any]] = [
    {"temperature": 0}, {"temperature": 2}, {"temperature": 0.7}, {"top_p": 0}, {"top_p": 1},
    {"top_k": -1}, {"top_k": 0}, {"min_p": 1}, {"repetition_penalty": 10},
    {"presence_penalty": -2}, {"frequency_penalty": 2.0}, {"seed": -(2**63)}, {"seed": 2**63 - 1},
    {"stop": []}, {"stop": "x" * 256}, {"stop": ["x"] * 16}, {"stop_token_ids": [0, 7]},
    {"logit_bias": {"0": 100, "7": -0.5}}, {"logit_bias": {}}, {"max_tokens": 1},
    {"max_tokens": 5, "max_completion_tokens": 5}, {"min_tokens": 0}, {"min_tokens": 5, "max_tokens": 5},
    {"stream": True, "stream_options": {"include_usage": True}}, {"stream": False},
    {"stream": True, "stream_options": {"include_obfuscation": False}},
    {"user": "someone", "metadata": {"k": "v"}, "safety_identifier": "s", "prompt_cache_key": "p"},
    {"prompt_cache_retention": "24h", "prompt_cache_options": {"mode": "implicit", "ttl": "30m"}},
    {"parallel_tool_calls": False}, {"ignore_eos": True}, {"n": 16}, {"logprobs": True, "top_logprobs": 20},
]  # fmt: skip


@pytest.mark.parametrize("fields", VALID, ids=json.dumps)
def test_accepted(fields: dict[str, Any]) -> None:
    request = parse(**fields)
    for name, value in fields.items():
        got = getattr(request, name)
        assert (got.model_dump(exclude_unset=True) if hasattr(got, "model_dump") else got) in (value, [value])


RANGES = [
    ("temperature", [-0.1, 2.1, 1e400, True, "1", [1]], "a number between 0 and 2"),
    ("top_p", [-1, 1.5], "a number between 0 and 1"),
    ("min_p", [-1, 1.5], "a number between 0 and 1"),
    ("top_k", [-2, 1.5, True], "an integer from -1 up"),
    ("repetition_penalty", [0, -1, 10.5], "a number greater than 0 and at most 10"),
    ("presence_penalty", [-2.5, 3], "a number between -2 and 2"),
    ("frequency_penalty", [-2.5, 3], "a number between -2 and 2"),
    ("max_tokens", [0, -1, 1.0, True, "5", 10**30], "an integer from 1 up"),
    ("max_completion_tokens", [0, 2**31], "an integer from 1 up"),
    ("min_tokens", [-1], "an integer from 0 up"),
    ("seed", [2**63, -(2**63) - 1, 1.5, "1"], None),
    ("n", [0, 17, True], "a number between 1 and 16"),
    ("top_logprobs", [-1, 21], "a number between 0 and 20"),
    ("stop", ["", "x" * 257, ["x"] * 17, [""], 1, [1], {}], None),
    ("stop_token_ids", [[-1], ["1"], 5, [1.5]], None),
    ("logit_bias", [{"a": 1}, {"-1": 1}, {"01": 1}, {"٣": 1}, {"1": 101}, {"1": "1"}, {"1": True}, []], None),
    ("metadata", [{"k": 1}, {"k" * 65: "v"}, {"k": "v" * 513}, {str(i): "" for i in range(17)}, []], None),
    ("stream", ["true", 1], None),
    ("stream_options", [True, {"include_usage": 1}], None),
    ("user", [1, ["a"]], None),
    ("model", ["", None, 1, "m" * 257], None),
    ("messages", [[], None, "hello", [None], {}], None),
    ("ignore_eos", [1, "true"], None),
    ("logprobs", [1], None),
    ("prompt_cache_retention", ["1h"], None),
]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [(name, value, expected) for name, values, expected in RANGES for value in values],
)
def test_out_of_range_or_of_another_type(name: str, value: Any, expected: str | None) -> None:
    error = refusal(**{name: value})
    if value != 1e400:  # no JSON number: the body itself is refused
        assert error.param is not None
        assert error.param.startswith(name)
    numeric = isinstance(value, int | float) and not isinstance(value, bool) and value != 1e400
    if expected and numeric and "valid" not in error.message:
        assert expected in error.message


def test_a_missing_field_is_named() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_json(b'{"model": "m"}', ChatCompletionRequest)
    assert (caught.value.param, caught.value.code) == ("messages", "missing_required_parameter")


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in NEUTRAL for value in NEUTRAL[name]])
def test_neutral_values_are_accepted(name: str, value: Any) -> None:
    if name in ChatCompletionRequest.model_fields:
        assert getattr(parse(**{name: value}), name) == value


UNSUPPORTED: list[tuple[str, Any]] = [
    ("store", True), ("prompt_logprobs", 0), ("return_token_ids", True),
    ("return_tokens_as_token_ids", True),
    ("modalities", ["text", "audio"]), ("audio", {"voice": "x"}),
    ("prediction", {"type": "content", "content": ""}), ("verbosity", "low"),
    ("web_search_options", {}), ("moderation", {"model": "m"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), UNSUPPORTED, ids=str)
def test_what_would_change_the_answer_is_refused_by_name(name: str, value: Any) -> None:
    error = refusal(**{name: value})
    assert (type(error), error.param, error.code) == (UnsupportedParameter, name, "unsupported_parameter")
    assert name in error.message


def test_the_message_of_an_unsupported_value_says_what_may_be_sent() -> None:
    assert refusal(store=True).message == "Unsupported parameter: 'store'. Leave it out, or send false or null."


def test_the_likeliest_tokens_are_told_with_the_others() -> None:
    assert [parse(**fields).token_logprobs for fields in ({}, {"logprobs": False}, {"top_logprobs": 0})] == [None] * 3
    assert [parse(logprobs=True, top_logprobs=k).token_logprobs for k in (None, 0, 20)] == [0, 0, 20]
    for silent in (None, False):
        assert refusal(logprobs=silent, top_logprobs=1).param == "top_logprobs"


def test_tools_are_named_before_their_choice() -> None:
    assert refusal(tools=[{}], tool_choice="sometimes").param == "tools.0.type"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 1}, "best_of"),
        ({"Temperature": 1}, "Temperature"),
        ({"request_id": "r"}, "request_id"),
        ({"messages": [{"role": "user", "content": "x", "cache": 1}]}, "messages.0.cache"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"stream": True, "stream_options": {"other": True}}, "stream_options.other"),
    ],
)
def test_unknown_names_are_refused(fields: dict[str, Any], param: str) -> None:
    error = refusal(**fields)
    assert (error.param, error.code) == (param, "unsupported_parameter")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
        ({"min_tokens": 6, "max_tokens": 5}, "min_tokens"),
        ({"min_tokens": 6, "max_completion_tokens": 5}, "min_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": False, "stream_options": {}}, "stream_options"),
    ],
)
def test_fields_that_contradict_each_other(fields: dict[str, Any], param: str) -> None:
    error = refusal(**fields)
    assert (error.param, error.code) == (param, "invalid_value")


# Messages

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
TEXT = {"type": "text", "text": "a"}


@pytest.mark.parametrize(
    ("message", "template"),
    [
        ({"role": "system", "content": "s"}, {"role": "system", "content": "s"}),
        ({"role": "developer", "content": "s"}, {"role": "developer", "content": "s"}),
        ({"role": "user", "content": "", "name": "ann"}, {"role": "user", "content": "", "name": "ann"}),
        ({"role": "user", "content": [TEXT, TEXT | {"text": "b"}]}, {"role": "user", "content": "ab"}),
        (
            {"role": "user", "content": [TEXT | {"prompt_cache_breakpoint": {"mode": "explicit"}}]},
            {"role": "user", "content": "a"},
        ),
        (
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
        ),
        (
            {"role": "assistant", "function_call": {"name": "f", "arguments": "{broken"}},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{broken"}}],
            },
        ),
        ({"role": "assistant", "content": None, "refusal": "no"}, {"role": "assistant", "content": "no"}),
        (
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
            {"role": "assistant", "content": "no"},
        ),
        (
            {"role": "tool", "content": "r", "tool_call_id": "c1"},
            {"role": "tool", "content": "r", "tool_call_id": "c1"},
        ),
        ({"role": "function", "content": None, "name": "f"}, {"role": "tool", "content": "", "name": "f"}),
    ],
)
def test_messages(message: dict[str, Any], template: dict[str, Any]) -> None:
    (parsed,) = parse(messages=[message]).messages
    assert parsed.for_template() == template


def test_an_answer_sent_back_as_history_is_accepted() -> None:
    body = chat_completion(HEAD, [Answer("hi", FinishReason.STOP)], Usage(1, 0, 1))
    message = ChatCompletion.model_validate_json(body).choices[0].message
    for dumped in (message.model_dump(), message.to_dict()):
        assert parse(messages=[*HELLO, dumped]).messages[1].text == "hi"


@pytest.mark.parametrize(
    ("message", "param", "words"),
    [
        ({"role": "robot", "content": "x"}, "messages.0.role", "'assistant'"),
        ({"content": "x"}, "messages.0.role", "Missing"),
        ({"role": "user"}, "messages.0", "needs 'content'"),
        ({"role": "user", "content": None}, "messages.0", "needs 'content'"),
        ({"role": "assistant", "content": None}, "messages.0", "needs 'content'"),
        ({"role": "assistant", "content": None, "tool_calls": []}, "messages.0", "needs 'content'"),
        ({"role": "user", "content": 1}, "messages.0.content", "a string or a list of content parts"),
        ({"role": "user", "content": []}, "messages.0.content", "at least 1 item"),
        ({"role": "user", "content": ["x"]}, "messages.0.content.0", ""),
        ({"role": "user", "content": [{"type": "text"}]}, "messages.0.content.0", "'text'"),
        ({"role": "user", "content": [{"text": "x"}]}, "messages.0.content.0.type", "Missing"),
        ({"role": "user", "content": [{"type": "refusal", "refusal": "x"}]}, "messages.0", "refusal"),
        ({"role": "user", "content": "x", "tool_calls": [CALL]}, "messages.0", "can't have 'tool_calls'"),
        ({"role": "user", "content": "x", "tool_call_id": "c"}, "messages.0", "can't have 'tool_call_id'"),
        ({"role": "tool", "content": "x"}, "messages.0", "needs 'tool_call_id'"),
        ({"role": "function", "content": "x"}, "messages.0", "needs 'name'"),
        ({"role": "assistant", "content": "x", "refusal": "y"}, "messages.0", "both"),
        ({"role": "assistant", "content": "x", "audio": {"id": "a"}}, "messages.0.audio", ""),
        (
            {"role": "assistant", "content": "", "tool_calls": [CALL | {"type": "custom"}]},
            "messages.0.tool_calls.0.type",
            "'function'",
        ),
        (
            {"role": "user", "content": [TEXT, {"type": "image_url", "image_url": {"url": "data:"}}]},
            "messages.0.content.1",
            "text only; a part of type 'image_url'",
        ),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "messages.0.content.0", "'input_audio'"),
        ({"role": "user", "content": [{"type": "file", "file": {}}]}, "messages.0.content.0", "'file'"),
    ],
)
def test_messages_that_are_refused(message: dict[str, Any], param: str, words: str) -> None:
    error = refusal(messages=[message])
    assert (error.status, error.param) == (400, param)
    assert words in error.message


def test_a_tier_is_any_string() -> None:
    for tier in ("auto", "flex", "priority", "one of tomorrow"):
        assert parse(service_tier=tier).service_tier == tier
    assert refusal(service_tier="x" * 129).param == "service_tier"
    assert refusal(service_tier=1).param == "service_tier"


# Hostile sizes. What is bounded is the number of errors and of items looked at: time follows from it.

NO_PART = {"role": "user", "content": [0] * 500}
NO_CALL = {"role": "assistant", "tool_calls": [0] * 500}


@pytest.mark.parametrize("messages", [[0] * 2000, [NO_PART] * 10, [NO_CALL] * 10])
def test_the_first_bad_item_of_a_list_is_the_only_one_looked_at(messages: list[Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        ChatCompletionRequest.model_validate_json(json.dumps({"model": "m", "messages": messages}))
    assert caught.value.error_count() == 1


@pytest.mark.parametrize("field", ["stop", "stop_token_ids"])
def test_the_first_bad_stop_is_the_only_one_looked_at(field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ChatCompletionRequest.model_validate_json(json.dumps({"model": "m", "messages": HELLO, field: [None] * 16}))
    assert caught.value.error_count() == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [0] * 2049}, "messages"),
        ({"messages": [{"role": "user", "content": [0] * 8193}]}, "messages"),
        ({"messages": [{"role": "user", "content": [0] * 5}] * 2000}, "messages"),
        ({"messages": [{"role": "assistant", "tool_calls": [0] * 8193}]}, "messages"),
        ({"messages": [{"role": "assistant", "content": "x", "annotations": [0] * 8193}]}, "messages"),
        ({"logit_bias": {f"x{i}": None for i in range(1025)}}, "logit_bias"),
        ({"metadata": {f"x{i}": None for i in range(17)}}, "metadata"),
        ({"stop": [0] * 17}, "stop"),
        ({"stop_token_ids": [None] * 65}, "stop_token_ids"),
    ],
)
def test_what_is_too_long_is_refused_before_its_items_are_validated(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ChatCompletionRequest.model_validate_json(json.dumps({"model": "m", "messages": HELLO} | fields))
    (error,) = caught.value.errors()
    assert (error["loc"], error["type"]) == ((param,), "too_many")
    assert "at most" in refusal(**fields).message


async def test_a_long_frame_is_parsed_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []

    def parse_here(data: str | bytes) -> ChatCompletionFrame | CancelFrame:
        threads.append(threading.get_ident())
        return parse_frame(data)

    monkeypatch.setattr(chat, "parse_frame", parse_here)
    for size in (1, LONG_BODY_BYTES):
        await chat.read_frame(json.dumps({"model": "m", "messages": HELLO, "user": "x" * size}))
    assert threads[0] == threading.get_ident() != threads[1]


# Fuzz

names = st.sampled_from([*ChatCompletionRequest.model_fields, "role", "content", "type", "text", "odd"])
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["user", "text"])
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4), max_leaves=15
)


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(names, values, max_size=6), st.booleans())
def test_any_json_parses_or_is_refused(body: dict[str, Any], complete: bool) -> None:
    text = json.dumps({"model": "m", "messages": HELLO} | body if complete else body)
    try:
        ChatCompletionRequest.model_validate_json(text)
    except (ValidationError, APIError):
        return


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(ChatCompletionRequest.model_fields)), values)
def test_any_value_in_any_field_parses_or_is_a_400(name: str, value: Any) -> None:
    try:
        parse(**{name: value})
    except APIError as error:
        status = error.status
    else:
        status = 400
    assert status == 400


@settings(max_examples=200, deadline=None)
@given(st.text() | st.binary() | values.map(json.dumps))
def test_any_frame_parses_or_is_refused(data: str | bytes) -> None:
    frame_head(data)
    with pytest.raises(APIError):
        parse_frame(data)


# WebSocket frames


def frame(**fields: Any) -> ChatCompletionFrame | CancelFrame:
    return parse_frame(json.dumps({"model": "m", "messages": HELLO} | fields))


def test_a_frame_streams() -> None:
    for fields in ({}, {"stream": True}, {"stream": None}, {"stream_options": {"include_usage": True}}):
        parsed = frame(**fields)
        assert isinstance(parsed, ChatCompletionFrame)
        assert parsed.stream is True


def test_a_frame_that_would_not_stream_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        frame(stream=False)
    assert caught.value.param == "stream"


def test_request_ids() -> None:
    parsed = frame(request_id="r1", type="chat.completion")
    assert parsed.request_id == "r1"
    assert parse_frame('{"type": "cancel", "request_id": "r1"}') == CancelFrame(type="cancel", request_id="r1")
    for bad in ("", "x" * 129, 1):
        with pytest.raises(InvalidRequest):
            frame(request_id=bad)
    with pytest.raises(InvalidRequest):
        frame(type="other")
    with pytest.raises(InvalidRequest):
        parse_frame('{"type": "cancel", "model": "m"}')


def test_the_head_of_a_frame() -> None:
    head = frame_head('{"messages": 5, "request_id": "r", "type": "cancel", "deep": [[1]]}')
    assert (head.type, head.request_id) == ("cancel", "r")
    for data in ('{"request_id": 5}', "[]", "{", b"\xff", "", "null", '{"a": NaN}', "[" * 100_000):
        assert frame_head(data).request_id is None


# Answers

HEAD = ResponseHead("chatcmpl-1", 1_700_000_000, "m@1", "fp_1")
USAGE = Usage(prompt_tokens=5, cached_tokens=2, completion_tokens=3)


def test_the_whole_answer_is_openai_s() -> None:
    answers = [Answer("hé\n", FinishReason.STOP), Answer("", FinishReason.LENGTH)]
    body = chat_completion(HEAD, answers, USAGE)
    completion = ChatCompletion.model_validate_json(body, strict=True, extra="forbid")
    assert json.loads(body) == completion.to_dict(mode="json")
    assert [(c.index, c.message.content, c.finish_reason) for c in completion.choices] == [
        (0, "hé\n", "stop"), (1, "", "length"),
    ]  # fmt: skip
    assert completion.usage is not None
    assert completion.usage.prompt_tokens_details is not None
    assert (completion.usage.total_tokens, completion.usage.prompt_tokens_details.cached_tokens) == (8, 2)
    assert "service_tier" not in json.loads(body)


def test_the_keys_of_an_answer() -> None:
    body = json.loads(chat_completion(HEAD, [Answer("x", FinishReason.STOP)], USAGE))
    assert list(body) == ["id", "object", "created", "model", "system_fingerprint", "choices", "usage"]
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "x", "refusal": None, "annotations": []},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]


@pytest.mark.parametrize("include_usage", [True, False])
def test_chunks_are_openai_s(include_usage: bool) -> None:
    encoder = ChatChunkEncoder(HEAD, include_usage=include_usage, choices=2)
    chunks = [
        encoder.role_chunk(1),
        encoder.text_chunk('a"\\\n\0é\U0001f600', 1),
        encoder.finish_chunk(FinishReason.LENGTH, 1),
        encoder.usage_chunk(USAGE),
    ]
    parsed = [ChatCompletionChunk.model_validate_json(chunk, strict=True, extra="forbid") for chunk in chunks]
    for chunk, model in zip(chunks, parsed, strict=True):
        assert json.loads(chunk) == model.to_dict(mode="json")
        assert (model.id, model.model, model.created) == ("chatcmpl-1", "m@1", 1_700_000_000)
    assert [len(model.choices) for model in parsed] == [1, 1, 1, 0]
    assert [choice.index for model in parsed for choice in model.choices] == [1, 1, 1]
    assert parsed[0].choices[0].delta.to_dict() == {"role": "assistant", "content": "", "refusal": None}
    assert parsed[1].choices[0].delta.to_dict() == {"content": 'a"\\\n\0é\U0001f600'}
    assert (parsed[2].choices[0].delta.to_dict(), parsed[2].choices[0].finish_reason) == ({}, "length")
    assert [("usage" in json.loads(chunk)) for chunk in chunks] == [include_usage] * 3 + [True]
    assert parsed[3].usage is not None
    assert parsed[3].usage.total_tokens == 8


def test_a_client_s_request_id_is_echoed_whatever_it_holds() -> None:
    encoder = ChatChunkEncoder(HEAD, request_id='\0"choices":[')
    for chunk in (encoder.role_chunk(), encoder.text_chunk("t"), encoder.usage_chunk(USAGE)):
        assert json.loads(chunk)["request_id"] == '\0"choices":['
    assert json.loads(encoder.text_chunk("t"))["choices"][0]["delta"] == {"content": "t"}
