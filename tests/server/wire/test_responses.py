"""server/wire/responses.py: what requests of the Responses API may say."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseReasoningItem
from openai.types.responses.input_token_count_params import InputTokenCountParams
from openai.types.responses.response_compact_params import ResponseCompactParams
from openai.types.responses.response_create_params import ResponseCreateParamsBase
from openai.types.responses.responses_client_event import ResponseCreate
from pydantic import BaseModel

from server.errors import InvalidRequest, UnsupportedParameter
from server.wire.body import parse_json
from server.wire.response_items import kept
from server.wire.responses import NEUTRAL, CompactRequest, InputTokensRequest, ResponseFrame, ResponsesRequest

EXTRA_BODY = {
    "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "seed", "stop",
    "stop_token_ids", "min_tokens", "ignore_eos", "chat_template_kwargs",
}  # fmt: skip


def parse(model: type[BaseModel] = ResponsesRequest, **fields: Any) -> Any:
    return parse_json(json.dumps({"model": "m", "input": "hello"} | fields).encode(), model)


def refusal(model: type[BaseModel] = ResponsesRequest, **fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(model, **fields)
    return caught.value


def test_every_field_of_the_sdk_is_known() -> None:
    create = set(ResponseCreateParamsBase.__annotations__) | {"stream"}
    assert set(ResponsesRequest.model_fields) == create | EXTRA_BODY
    assert set(ResponseFrame.model_fields) == set(ResponseCreate.model_fields) | EXTRA_BODY
    assert set(InputTokensRequest.model_fields) == set(InputTokenCountParams.__annotations__)
    assert set(CompactRequest.model_fields) == set(ResponseCompactParams.__annotations__)


@pytest.mark.parametrize("name", sorted(set(ResponsesRequest.model_fields) - {"model", "input"}))
def test_null_is_silence(name: str) -> None:
    assert getattr(parse(**{name: None}), name) in (None, [])


VALID: list[dict[str, Any]] = [
    {"truncation": "auto"}, {"service_tier": "flex"}, {"metadata": {"k": "v"}}, {"max_tool_calls": 0},
    {"text": {"format": {"type": "text"}, "verbosity": "medium"}}, {"store": False}, {"top_logprobs": 20},
    {"include": ["message.output_text.logprobs"]},
    {"stream": True, "stream_options": {"include_obfuscation": True}}, {"background": True},
    {"include": ["reasoning.encrypted_content", "code_interpreter_call.outputs"]},
    {"reasoning": {"effort": "low", "summary": "auto"}}, {"image": {"context_compression": "disabled"}},
    {"tool_choice": {"type": "function", "name": "f"}}, {"prompt_cache_options": {"mode": "implicit"}},
    {"tools": [{"type": "function", "name": "f", "parameters": None, "strict": None, "async": False}]},
]  # fmt: skip


@pytest.mark.parametrize("fields", VALID, ids=json.dumps)
def test_accepted(fields: dict[str, Any]) -> None:
    request = parse(**fields)
    assert request.model_fields_set == {"model", "input", *fields}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n in NEUTRAL for v in NEUTRAL[n]], ids=str)
def test_neutral_values_are_accepted(name: str, value: Any) -> None:
    assert getattr(parse(**{name: value}), name) == value


UNSUPPORTED: list[tuple[str, Any]] = [
    ("conversation", "conv_1"), ("prompt", {"id": "p"}), ("moderation", {"model": "m"}),
    ("context_management", [{"type": "compaction"}]), ("access_programs", {"cyber": "standard"}),
    ("image", {"context_compression": "enabled"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), UNSUPPORTED, ids=str)
def test_what_would_change_the_answer_is_refused_by_name(name: str, value: Any) -> None:
    error = refusal(**{name: value})
    assert (type(error), error.param, error.code) == (UnsupportedParameter, name, "unsupported_parameter")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"input": 1}, "input"),
    ({"input": [1]}, "input.0"),
    ({"input": [{"role": "robot", "content": "x"}]}, "input.0.role"),
    ({"input": [{"role": "user", "content": 1}]}, "input.0.content"),
    ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input.0.call_id"),
    ({"input": [{"type": "shell_call"}]}, "input.0"),
    ({"input": [{"type": "item_reference", "id": "a\0b"}]}, "input.0.id"),
    ({"input": [{"role": "user", "content": "x", "cache": 1}]}, "input.0.cache"),
    ({"temperature": 3}, "temperature"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"include": ["everything"]}, "include.0"),
    ({"top_logprobs": 21}, "top_logprobs"),
    ({"reasoning": {"context": "all_turns"}}, "reasoning.context"),
    ({"reasoning": {"mode": "pro"}}, "reasoning.mode"),
    ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
    ({"tools": [{"type": "custom", "name": "x"}]}, "tools.0"),
    ({"stream_options": {}}, "stream_options"),
    ({"background": True, "store": False}, "background"),
    ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
    ({"text": {"verbosity": "high"}}, "text.verbosity"),
]


@pytest.mark.parametrize(("fields", "param"), WRONG, ids=json.dumps)
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str) -> None:
    assert refusal(**fields).param == param


def test_something_to_answer_is_needed() -> None:
    assert refusal(input=None).code == "missing_required_parameter"
    assert parse(input=None, previous_response_id="resp_1").input == []


def test_over_a_websocket() -> None:
    frame = parse(ResponseFrame, type="response.create", stream_id="lane", generate=False)
    assert (frame.stream, frame.stream_id, frame.generate) == (True, "lane", False)
    assert refusal(ResponseFrame, type="response.create", background=True).param == "background"
    assert refusal(ResponseFrame, type="response.create", stream=False).param == "stream"


def stored(*items: dict[str, Any]) -> list[dict[str, Any]]:
    return [kept(item) for item in parse(input=list(items)).input]


def test_items_are_kept_with_ids_and_in_one_form() -> None:
    (message, call, output, thought) = stored(
        {"role": "user", "content": "x"},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "id": "fc_1", "async": None},
        {"type": "function_call_output", "call_id": "c", "output": "y"},
        {"type": "reasoning", "summary": []},
    )
    assert message.pop("id").startswith("msg_")
    text = {"type": "input_text", "text": "x"}
    assert message == {"type": "message", "role": "user", "content": [text], "status": "completed"}
    wanted = {"id": "fc_1", "type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    assert call == wanted | {"status": "completed"}
    assert (output["output"], output["id"][:4]) == ("y", "fco_")
    assert thought["id"].startswith("rs_")


def test_what_the_sdk_makes_of_an_answer_is_accepted_as_input() -> None:
    text = {"type": "output_text", "text": "x", "annotations": [], "logprobs": []}
    answers: list[BaseModel] = [
        ResponseOutputMessage.model_validate(
            {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [text]}
        ),
        ResponseFunctionToolCall(call_id="c", name="f", arguments="{}", type="function_call", id="fc_1"),
        ResponseReasoningItem(id="rs_1", summary=[], type="reasoning"),
    ]
    for answer in answers:
        for dumped in (answer.model_dump(by_alias=True), answer.model_dump(exclude_unset=True)):
            (item,) = stored(dumped)
            assert item["id"] == answer.id  # type: ignore[attr-defined]


def test_words_of_the_assistant_are_output() -> None:
    (item,) = stored({"role": "assistant", "content": "x", "phase": "commentary"})
    assert item["content"] == [{"type": "output_text", "text": "x", "annotations": [], "logprobs": []}]
    assert item["phase"] == "commentary"
