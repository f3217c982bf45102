"""Items -> the messages of a chat."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import TypeAdapter

from server.errors import InvalidRequest
from server.responses.conversation import SUMMARY, Reading, messages_of, without_oldest
from server.wire.response_items import Input, kept

READING = Reading("[image]", lambda sealed: f"opened {sealed}")
USER: dict[str, Any] = {"role": "user", "content": "hi"}
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "42"}
THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
CALLED = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def messages(*items: dict[str, Any] | str, instructions: str | None = None, reading: Reading = READING) -> Any:
    given = items[0] if len(items) == 1 and isinstance(items[0], str) else list(items)
    parsed = TypeAdapter(Input).validate_json(json.dumps(given))
    return messages_of([kept(item) for item in parsed], instructions, reading)


def says(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def test_a_string_is_the_user_s() -> None:
    assert messages("hello") == [says("user", "hello")]


@pytest.mark.parametrize("kind", ["input_text", "text"])
@pytest.mark.parametrize("role", ["user", "system", "developer"])
def test_parts_are_joined(role: str, kind: str) -> None:
    parts = [{"type": kind, "text": "a"}, {"type": kind, "text": "b"}]
    assert messages({"role": role, "content": parts}) == [says(role, "ab")]


def test_instructions_stand_first_and_in_one_message_with_the_system_s() -> None:
    assert messages(USER, instructions="be brief") == [says("system", "be brief"), says("user", "hi")]
    system = {"role": "developer", "content": "in French"}
    assert messages(system, USER, instructions="be brief") == [
        says("developer", "be brief\n\nin French"),
        says("user", "hi"),
    ]


def test_what_the_assistant_did_in_one_turn_is_one_message() -> None:
    words = {"role": "assistant", "content": "let me see"}
    assert messages(USER, THOUGHT, words, CALL, CALL | {"call_id": "c2"}, OUTPUT, USER) == [
        says("user", "hi"),
        {
            "role": "assistant",
            "content": "let me see",
            "tool_calls": [CALLED, CALLED | {"id": "c2"}],
            "reasoning_content": "hm",
        },
        {"role": "tool", "content": "42", "tool_call_id": "c1"},
        says("user", "hi"),
    ]


def test_what_it_did_in_several_is_several() -> None:
    words = {"role": "assistant", "content": "one", "phase": "commentary"}
    assert messages(words, words | {"content": "two"}) == [says("assistant", "one"), says("assistant", "two")]
    after_calls = messages(CALL, {"role": "assistant", "content": "two"})
    assert after_calls == [{"role": "assistant", "content": None, "tool_calls": [CALLED]}, says("assistant", "two")]


def test_a_refusal_is_words_of_the_assistant() -> None:
    refused = {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}
    assert messages(refused) == [says("assistant", "no")]


def test_an_output_needs_its_call() -> None:
    with pytest.raises(InvalidRequest, match="No tool call found for function call output with call_id c1"):
        messages(USER, OUTPUT)


def test_outputs_may_be_parts() -> None:
    parts = [{"type": "input_text", "text": "4"}, {"type": "input_text", "text": "2"}]
    assert messages(CALL, OUTPUT | {"output": parts})[-1]["content"] == "42"


def test_sealed_content_is_opened() -> None:
    compaction = {"type": "compaction", "encrypted_content": "x"}
    assert messages(compaction) == [says("user", SUMMARY + "opened x")]
    thought = THOUGHT | {"encrypted_content": "y", "content": None}
    assert messages(thought, {"role": "assistant", "content": "a"})[0]["reasoning_content"] == "opened y"


def test_an_image_is_what_the_model_s_template_writes_for_it_or_refused() -> None:
    picture = {"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}
    assert messages(picture) == [says("user", "[image]")]
    with pytest.raises(InvalidRequest, match="'input_image' is not supported") as caught:
        messages(picture, reading=Reading(None, str))
    assert caught.value.param == "input"


@pytest.mark.parametrize(
    ("count", "left"),
    [(0, "s12t3"), (1, "s2t3"), (2, "s3"), (3, "s3"), (4, "s3"), (9, "s3")],
)
def test_the_oldest_are_dropped_but_never_the_last(count: int, left: str) -> None:
    roles = {"s": "system", "t": "tool", "1": "user", "2": "assistant", "3": "user"}
    conversation = [says(roles[name], name) for name in "s12t3"]
    assert "".join(message["content"] for message in without_oldest(conversation, count)) == left


@pytest.mark.parametrize("count", [2, 3, 4, 9])
def test_the_last_answers_of_tools_stay_with_what_asked_for_them(count: int) -> None:
    conversation = [says(role, role) for role in ("user", "user", "assistant", "tool", "tool")]
    assert without_oldest(conversation, count) == conversation[2:]


def test_system_messages_alone_are_left_alone() -> None:
    conversation = [says("system", "a"), says("developer", "b")]
    assert without_oldest(conversation, 1) == conversation
