"""Anthropic's requests: every field of its SDK is honoured, accepted without effect, or refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from anthropic.types import message_count_tokens_params, message_create_params

from server.dialect import UNSUPPORTED_HEADERS
from server.errors import APIError
from server.wire.body import parse_json
from server.wire.common import MAX_PARTS
from server.wire.messages import CountTokensRequest, MessagesRequest

HI = {"role": "user", "content": "hi"}
OBJECT = {"type": "object"}


def parse(**fields: Any) -> MessagesRequest:
    body = {"model": "m", "max_tokens": 5, "messages": [HI]} | fields
    return parse_json(json.dumps(body).encode(), MessagesRequest)


def said(*blocks: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": list(blocks)}, HI]}


def tool(**fields: Any) -> dict[str, Any]:
    return {"tools": [{"name": "f", "input_schema": OBJECT} | fields]}


AS_HEADERS = {name.removeprefix("anthropic-").replace("-", "_") for name in UNSUPPORTED_HEADERS}


def test_every_parameter_of_the_sdk_is_known() -> None:
    theirs = set(message_create_params.MessageCreateParamsBase.__annotations__) | {"stream"}
    ours = set(MessagesRequest.model_fields)
    assert theirs - ours == AS_HEADERS
    assert ours - theirs == {"temperature", "top_p", "top_k", "mcp_servers", "thread"}  # of its other versions, or beta
    counted = set(message_count_tokens_params.MessageCountTokensParams.__annotations__)
    assert counted - AS_HEADERS == set(CountTokensRequest.model_fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"metadata": {"user_id": "u"}, "service_tier": "standard_only", "speed": "standard", "mcp_servers": []},
        {"cache_control": {"type": "ephemeral", "ttl": "1h"}, "container": None, "diagnostics": None},
        {"system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}]},
        {"thinking": {"type": "enabled", "budget_tokens": 1024, "display": "omitted"}},
        {"tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True}} | tool(type="custom"),
        tool(cache_control=None, eager_input_streaming=True, allowed_callers=["direct"], defer_loading=False),
        said({"type": "tool_result", "tool_use_id": "x"}),
        said({"type": "tool_use", "id": "x", "name": "f", "input": {}, "caller": {"type": "direct"}}, role="assistant"),
        said({"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "x"}, role="assistant"),
        {"messages": [{"role": "system", "content": "s"}, HI]},
        {"output_config": {"effort": None, "format": {"type": "json_schema", "schema": OBJECT}}},
        {"temperature": 1, "top_p": 0.5, "top_k": 0, "stop_sequences": ["x"] * 16, "stream": True},
    ],
)
def test_accepted(fields: dict[str, Any]) -> None:
    parse(**fields)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"container": "c"}, "container", "null"),
        ({"mcp_servers": [{}]}, "mcp_servers", "[]"),
        ({"speed": "fast"}, "speed", "standard"),
        ({"inference_geo": "us"}, "inference_geo", ""),
        ({"diagnostics": {}}, "diagnostics", ""),
        ({"thread": {"type": "create"}}, "thread", ""),
        ({"context_management": {}}, "context_management", "Unsupported"),
        ({"temperature": 1.5}, "temperature", "between 0 and 1"),
        ({"max_tokens": 0}, "max_tokens", "from 1 up"),
        ({"stop_sequences": ["x"] * 17}, "stop_sequences", "at most 16"),
        ({"thinking": {"type": "between_tools"}}, "thinking", "'adaptive'"),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens", "from 1 up"),
        ({"output_config": {"effort": "max"}}, "output_config.effort", "'xhigh'"),
        (tool(type="web_search_20250305"), "tools.0", "web_search_20250305"),
        (tool(type="bash_20250124"), "tools.0", "bash_20250124"),
        (tool(input_schema={}), "tools.0.input_schema", "object"),
        (tool(defer_loading=True), "tools.0.defer_loading", "False"),
        (tool(allowed_callers=["code_execution_20250825"]), "tools.0.allowed_callers.0", "direct"),
        (tool(name="a b"), "tools.0.name", ""),
        (said({"type": "image", "source": {}}), "messages.0.content.0", "'image'"),
        (said({"type": "document", "source": {}}), "messages.0.content.0", "'document'"),
        (
            said({"type": "tool_result", "tool_use_id": "x", "content": [{"type": "image"}]}),
            "messages.0.content.0.content.0",
            "'image'",
        ),
        (said({"type": "tool_use", "id": "x", "name": "f", "input": {}}), "messages.0", "'tool_use'"),
        (said({"type": "tool_result", "tool_use_id": "x"}, role="assistant"), "messages.0", "'tool_result'"),
        (said(), "messages.0.content", ""),
        ({"system": [{"type": "image"}]}, "system.0", "'image'"),
        ({"messages": [HI, {"role": "assistant", "content": "a"}]}, "messages", "goes on"),
        ({"messages": [HI | {"name": "n"}]}, "messages.0.name", "Unsupported"),
        ({"messages": [HI | {"content": [{"type": "text", "text": ""}] * (MAX_PARTS + 1)}]}, "messages", "all"),
    ],
)
def test_refused_by_name(fields: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(APIError) as caught:
        parse(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert words in caught.value.message


def test_results_inside_results_are_counted_before_they_are_read() -> None:
    results = [{"type": "tool_result", "tool_use_id": "x", "content": [None] * 4096}] * 3
    with pytest.raises(APIError, match="all messages together"):
        parse(**said(*results))
