"""Anthropic's requests as the chat completions that they are."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from server.errors import InvalidRequest, UnsupportedParameter
from server.generation import Generation
from server.messages import as_chat
from server.registry import Deployment
from server.text.answer import joined
from server.text.chat_template import ChatTemplate
from server.text.formats.format import DEEPSEEK, HARMONY, HERMES, Format, of_templates
from server.text.prompt import ChatEncoder
from server.text.tokenizer import ByteTokenizer
from server.tools import plan
from server.wire.body import parse_json
from server.wire.chat import ChatCompletionRequest
from server.wire.messages import CountTokensRequest, MessagesRequest
from tests.server.test_pipeline import House

HI = {"role": "user", "content": "hi"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
VARIABLES = frozenset({"messages", "tools"})


def deployed(form: Format = HERMES, *variables: str) -> Deployment:
    template = SimpleNamespace(variables=VARIABLES | set(variables))
    return cast(Deployment, SimpleNamespace(encoder=SimpleNamespace(template=template), form=form))


def chat(deployment: Deployment | None = None, **fields: Any) -> ChatCompletionRequest:
    body = {"model": "m", "max_tokens": 5000, "messages": [HI]} | fields
    return as_chat(parse_json(json.dumps(body).encode(), MessagesRequest), deployment or deployed())


def told(*messages: Any, **fields: Any) -> list[dict[str, Any]]:
    return [message.for_template() for message in chat(messages=list(messages), **fields).messages]


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def test_words() -> None:
    system = [text("Be "), text("brief.")]
    assert told({"role": "user", "content": [text("a"), text("b")]}, system=system) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "ab"},
    ]


def test_a_loop_of_tools() -> None:
    use = {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": "é"}}
    answer = {
        "role": "assistant",
        "content": [{"type": "thinking", "thinking": "hm", "signature": "s"}, text("So"), use],
    }
    results = [
        {"type": "tool_result", "tool_use_id": "t1", "content": "fine"},
        {"type": "tool_result", "tool_use_id": "t2", "content": [text("no "), text("way")], "is_error": True},
        {"type": "tool_result", "tool_use_id": "t3"},
        text("Well?"),
    ]
    call = {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"a": "é"}'}}
    assert told(HI, answer, {"role": "user", "content": results}) == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "So", "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "content": "fine", "tool_call_id": "t1"},
        {"role": "tool", "content": "Error: no way", "tool_call_id": "t2"},
        {"role": "tool", "content": "", "tool_call_id": "t3"},
        {"role": "user", "content": "Well?"},
    ]


def test_what_follows_in_one_role_is_one_turn() -> None:
    use = {"type": "tool_use", "id": "t1", "name": "f", "input": {}}
    answers = [{"role": "assistant", "content": content} for content in ([text("a")], [use], [text("b")])]
    turns = told(HI, HI, *answers, HI)
    assert [(turn["role"], turn["content"]) for turn in turns] == [
        ("user", "hi\n\nhi"),
        ("assistant", "a\n\nb"),
        ("user", "hi"),
    ]
    assert [call["id"] for call in turns[1]["tool_calls"]] == ["t1"]


def test_thoughts_that_nobody_here_can_read_are_left_out() -> None:
    answer = {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}, text("a")]}
    assert told(HI, answer, HI)[1] == {"role": "assistant", "content": "a"}


def test_sampling() -> None:
    made = chat(stop_sequences=["x"], temperature=0.5, top_p=0.25, top_k=3, stream=True)
    assert (made.explicit_max_tokens, made.stop, made.temperature, made.top_p, made.top_k, made.stream) == (
        5000, ["x"], 0.5, 0.25, 3, True,
    )  # fmt: skip
    assert made.seed is None
    assert made.include_usage is False


@pytest.mark.parametrize(
    ("choice", "names", "must_call", "parallel"),
    [
        (None, "fg", False, True),
        ({"type": "auto", "disable_parallel_tool_use": True}, "fg", False, False),
        ({"type": "any"}, "fg", True, True),
        ({"type": "tool", "name": "g"}, "g", True, False),
        ({"type": "none"}, "", False, True),
    ],
)
def test_tools(choice: Any, names: str, must_call: bool, parallel: bool) -> None:
    tools = [{"name": name, "input_schema": SCHEMA, "strict": True} for name in "fg"]
    tools[0] |= {"description": "F.", "input_examples": [{"a": 1}]}
    body = chat(tools=tools, **({"tool_choice": choice} if choice else {}))
    made = plan(body, HERMES, VARIABLES, takes_grammars=True)
    assert (made.names, made.must_call, made.parallel) == (frozenset(names), must_call, parallel)
    if names:
        assert made.shown[0]["function"] == {
            "name": "f", "description": 'F.\nExamples of inputs:\n{"a": 1}', "parameters": SCHEMA, "strict": True,
        }  # fmt: skip
        assert made.shown[1]["function"] == {"name": "g", "parameters": SCHEMA, "strict": True}


def test_an_answer_of_a_schema() -> None:
    body = chat(output_config={"format": {"type": "json_schema", "schema": SCHEMA}})
    assert json.loads(plan(body, HERMES, VARIABLES, takes_grammars=True).schema or "") == SCHEMA


def test_effort() -> None:
    made = plan(chat(output_config={"effort": "low"}), HARMONY, VARIABLES | {"reasoning_effort"}, takes_grammars=True)
    assert made.template_kwargs == {"reasoning_effort": "low"}


ENABLED = {"type": "enabled", "budget_tokens": 1024}
ADAPTIVE = {"type": "adaptive"}
DISABLED = {"type": "disabled"}


@pytest.mark.parametrize(
    ("form", "variables", "thinking", "kwargs"),
    [
        (HERMES, ("enable_thinking",), ENABLED, {"enable_thinking": True}),
        (HERMES, ("enable_thinking",), ADAPTIVE, {"enable_thinking": True}),
        (HERMES, ("enable_thinking",), DISABLED, {"enable_thinking": False}),
        (DEEPSEEK, ("thinking",), DISABLED, {"thinking": False}),
        (DEEPSEEK, (), ENABLED, None),
        (HARMONY, ("reasoning_effort",), ADAPTIVE, None),
        (HERMES, (), DISABLED, None),
        (HERMES, (), None, None),
    ],
)
def test_thinking(form: Format, variables: tuple[str, ...], thinking: Any, kwargs: Any) -> None:
    fields = {"thinking": thinking} if thinking else {}
    assert chat(deployed(form, *variables), **fields).chat_template_kwargs == kwargs


@pytest.mark.parametrize(("form", "thinking"), [(HERMES, ENABLED), (HERMES, ADAPTIVE), (DEEPSEEK, DISABLED)])
def test_a_model_that_can_not_think_as_it_is_told(form: Format, thinking: Any) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        chat(deployed(form), thinking=thinking)
    assert caught.value.param == "thinking"


def test_a_count_is_of_the_same_prompt() -> None:
    body = json.dumps({"model": "m", "messages": [HI], "system": "s"}).encode()
    made = as_chat(parse_json(body, CountTokensRequest), deployed())
    assert [message.for_template() for message in made.messages] == told(HI, system="s")


# --- through the pipeline

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}{% if enable_thinking is true %}<think>{% endif %}"


def thinking_house() -> House:
    encoder = ChatEncoder(ByteTokenizer(), ChatTemplate({"default": TEMPLATE}))
    return House(encoder=encoder, form=of_templates({"default": TEMPLATE}))


async def prepared(house: House, **fields: Any) -> Generation:
    body = {"model": "m", "max_tokens": 50, "messages": [HI]} | fields
    request = parse_json(json.dumps(body).encode(), MessagesRequest)
    deployment = house.pipeline.router.resolve("m", house.caller.principal)
    return await house.pipeline.chat(house.caller, as_chat(request, deployment), "messages", "msg")


async def test_a_message_has_a_feature_and_ids_of_its_own() -> None:
    job = (await prepared(thinking_house(), stream=True)).job
    assert job.features == {"messages", "stream", "websocket"}
    assert job.head.id.startswith("msg-")


@pytest.mark.parametrize(("thinking", "reasoning", "words"), [(ADAPTIVE, "hm", "So."), (DISABLED, "", "hm</think>So.")])
async def test_the_switch_reaches_template_and_reader(thinking: Any, reasoning: str, words: str) -> None:
    house = thinking_house()
    (prompt,) = (await prepared(house, thinking=thinking)).job.prompts
    assert bytes(prompt.token_ids).endswith(b"<think>") is bool(reasoning)
    stream = prompt.new_stream()
    answer = joined([stream.add(list(b"hm</think>So.")), stream.finish()])
    assert (answer.reasoning, answer.text) == (reasoning, words)
    body = json.dumps({"model": "m", "messages": [HI], "thinking": thinking}).encode()
    deployment = house.pipeline.router.resolve("m", house.caller.principal)
    counted = as_chat(parse_json(body, CountTokensRequest), deployment)
    assert await house.pipeline.count_tokens(house.caller, counted, "messages") == len(prompt.token_ids)


async def test_what_is_filtered_is_not_counted_either() -> None:
    house = thinking_house()
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "blocked"}]}).encode()
    deployment = house.pipeline.router.resolve("m", house.caller.principal)
    counted = as_chat(parse_json(body, CountTokensRequest), deployment)
    with pytest.raises(InvalidRequest, match="content filter"):
        await house.pipeline.count_tokens(house.caller, counted, "messages")
