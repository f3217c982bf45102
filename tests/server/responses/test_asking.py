"""From a request to what the chat pipeline is asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from server.errors import APIError, InvalidRequest, UnsupportedParameter
from server.responses.asking import TOO_LONG, ChatOfResponse, chat_of, fitted, own_names
from server.responses.conversation import Message
from server.wire.body import parse_json
from server.wire.responses import ResponsesRequest
from server.wire.tools import JsonSchemaFormat, NamedTool

HELLO: list[Message] = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}


def chat(**fields: Any) -> ChatOfResponse:
    request = parse_json(json.dumps({"model": "m", "input": "hello"} | fields).encode(), ResponsesRequest)
    return chat_of(request, HELLO)


def test_what_has_another_name_in_a_chat() -> None:
    schema = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    asked = chat(max_output_tokens=7, text={"format": schema}, reasoning={"effort": "low"}, seed=3, stop="x", top_k=4)
    assert (asked.explicit_max_tokens, asked.reasoning_effort, asked.seed, asked.stop) == (7, "low", 3, ["x"])
    assert asked.top_k == 4
    assert isinstance(asked.response_format, JsonSchemaFormat)
    assert asked.response_format.json_schema.json_schema == {"type": "object"}


@pytest.mark.parametrize("kind", ["text", "json_object"])
def test_formats(kind: str) -> None:
    form = chat(text={"format": {"type": kind}}).response_format
    assert form is not None
    assert form.type == kind


def test_tools_and_the_choice_among_them() -> None:
    asked = chat(tools=[TOOL], tool_choice={"type": "function", "name": "f"}, parallel_tool_calls=False)
    assert asked.tools is not None
    assert (asked.tools[0].function.name, asked.tools[0].function.strict) == ("f", True)
    assert isinstance(asked.tool_choice, NamedTool)
    assert asked.parallel_tool_calls is False
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]}
    choice: Any = chat(tools=[TOOL], tool_choice=allowed).tool_choice
    assert (choice.allowed_tools.mode, choice.allowed_tools.tools[0].function.name) == ("required", "f")


@pytest.mark.parametrize("choice", ["none", "auto"])
def test_a_choice_of_nothing_needs_no_tools(choice: str) -> None:
    assert chat(tool_choice=choice, tools=[]).tool_choice is None


def test_one_in_the_background_tells_of_itself() -> None:
    assert [chat().is_streamed, chat(stream=True).is_streamed, chat(background=True).is_streamed] == [False, True, True]


def test_errors_have_the_response_s_names() -> None:
    with pytest.raises(UnsupportedParameter) as caught, own_names():
        raise UnsupportedParameter("reasoning_effort", "Unsupported parameter: 'reasoning_effort'.")
    assert caught.value.param == "reasoning.effort"
    assert caught.value.message == "Unsupported parameter: 'reasoning.effort'."
    with pytest.raises(APIError) as other, own_names():
        raise InvalidRequest("x", param="temperature")
    assert other.value.param == "temperature"


@pytest.mark.parametrize("room", range(1, 9))
async def test_as_many_of_the_latest_messages_are_taken_as_fit(room: int) -> None:
    conversation: list[Message] = [{"role": "user", "content": str(i)} for i in range(8)]

    async def attempt(messages: Sequence[Message]) -> str:
        if len(messages) > room:
            raise InvalidRequest("too long", code=TOO_LONG)
        return "".join(message["content"] for message in messages)

    assert await fitted(conversation, attempt, truncate=True) == "01234567"[-room:]
    if room < 8:
        with pytest.raises(InvalidRequest):
            await fitted(conversation, attempt, truncate=False)


async def test_what_never_fits_and_what_is_wrong_otherwise_is_said() -> None:
    for code in (TOO_LONG, "invalid_value"):
        attempts = []

        async def attempt(messages: Sequence[Message], code: str = code, attempts: list[int] = attempts) -> None:
            attempts.append(len(messages))
            raise InvalidRequest("no", code=code)

        with pytest.raises(InvalidRequest):
            await fitted([*HELLO, *HELLO], attempt, truncate=True)
        assert attempts == ([2, 1] if code == TOO_LONG else [2])
