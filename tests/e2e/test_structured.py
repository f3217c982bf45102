"""Schemas and tools behind the whole server, through OpenAI's client and over a WebSocket."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import openai
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from pydantic import BaseModel
from websockets.sync.client import connect

from server.text.tokenizer import load_tokenizer
from tests.e2e.conftest import shared_folder
from tests.grammar_files import BUNDLED, validate
from tests.penstock_process import ADMIN_KEY, API_KEY, PenstockProcess

MESSAGES: list[Any] = [{"role": "user", "content": "What is the weather in Rome?"}]
WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "unit": {"enum": ["c", "f"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "get_time"}},
]


class Step(BaseModel):
    done: bool
    number: int | None


class Steps(BaseModel):
    steps: list[Step]
    word: str


def closing() -> dict[str, int]:
    """A small model runs on inside a string or a list: what closes one is made likely."""
    tokenizer = load_tokenizer(BUNDLED)
    ends = (b'"', b"}", b"]", b"]}", b'"}')
    return {str(i): 30 for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) in ends}


@pytest.fixture
def sdk(several: PenstockProcess) -> openai.OpenAI:
    return several.sdk()


def ask(sdk: openai.OpenAI, model: str = "tiny-chat", **fields: Any) -> Any:
    return sdk.chat.completions.create(model=model, messages=MESSAGES, **{"max_tokens": 400, "seed": 1} | fields)


def json_schema(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


def test_parse_gives_an_object(sdk: openai.OpenAI) -> None:
    made = sdk.chat.completions.parse(
        model="tiny-chat", messages=MESSAGES, response_format=Steps, max_tokens=400,
        logit_bias=closing(),
    )  # fmt: skip
    assert made.choices[0].finish_reason == "stop"
    assert isinstance(made.choices[0].message.parsed, Steps)


def test_a_stream_is_parsed(sdk: openai.OpenAI) -> None:
    with sdk.chat.completions.stream(
        model="tiny-chat", messages=MESSAGES, response_format=Steps, max_tokens=400, seed=5,
        logit_bias=closing(),
    ) as stream:  # fmt: skip
        for _ in stream:
            pass
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Steps)


def test_a_seeded_answer_is_the_same_alone_and_in_a_crowd(sdk: openai.OpenAI) -> None:
    form = json_schema(WEATHER)
    alone = ask(sdk, response_format=form).choices[0].message.content
    validate(alone, WEATHER)

    async def crowd() -> list[str]:
        async with openai.AsyncOpenAI(base_url=sdk.base_url, api_key=sdk.api_key) as client:
            fields: list[dict[str, Any]] = [{"response_format": form, "seed": seed % 3} for seed in range(24)]
            fields[::4] = [{"seed": 1} for _ in fields[::4]]
            work = [
                client.chat.completions.create(model="tiny-chat", messages=MESSAGES, max_tokens=60, **field)
                for field in fields
            ]
            return [str(made.choices[0].message.content) for made in await asyncio.gather(*work)]

    answers = asyncio.run(crowd())
    assert answers[1] == answers[7] == answers[13] == alone
    assert len(set(answers[::4])) == 1  # those without a grammar


def test_a_stop_token_need_not_be_known(sdk: openai.OpenAI) -> None:
    """What is complete ends, whatever the model would have to say."""
    made = ask(sdk, response_format=json_schema(WEATHER), extra_body={"ignore_eos": True})
    assert made.choices[0].finish_reason == "stop"
    validate(made.choices[0].message.content, WEATHER)


def test_over_a_websocket(several: PenstockProcess) -> None:
    headers = {"Authorization": f"Bearer {API_KEY}"}
    with connect(several.websocket_url, additional_headers=headers) as socket:
        body = {"model": "tiny-chat", "messages": MESSAGES, "seed": 1, "max_tokens": 400}
        socket.send(json.dumps(body | {"response_format": json_schema({"uniqueItems": True})}))
        assert json.loads(socket.recv())["error"]["param"] == "response_format"
        socket.send(json.dumps(body | {"response_format": json_schema(WEATHER)}))
        text, reason = "", None
        while reason is None:
            choice = json.loads(socket.recv())["choices"][0]
            text, reason = text + choice["delta"].get("content", ""), choice["finish_reason"]
        assert reason == "stop"
        validate(text, WEATHER)


def test_what_an_engine_cannot_do_is_refused_by_name(fake: PenstockProcess, sdk: openai.OpenAI) -> None:
    for fields, param in [
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": TOOLS}, "tools"),
    ]:
        with pytest.raises(openai.BadRequestError) as caught:
            ask(fake.sdk(), "echo", **fields)
        assert (caught.value.param, caught.value.code) == (param, "unsupported_parameter")
    with pytest.raises(openai.BadRequestError) as caught:  # its template knows none
        ask(sdk, tools=TOOLS)
    assert (caught.value.param, caught.value.code) == ("tools", "unsupported_parameter")


def test_a_schema_that_cannot_be_held_to_is_refused_with_the_reason(sdk: openai.OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="uniqueItems") as caught:
            ask(sdk, response_format=json_schema({"type": "array", "uniqueItems": True}), stream=stream)
        assert (caught.value.param, caught.value.code) == ("response_format", "invalid_grammar")


def test_tool_calls(sdk: openai.OpenAI) -> None:
    shared_folder("tiny-llama")
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        made = ask(sdk, "tiny-llama", tools=TOOLS[:1], tool_choice=choice).choices[0]
        assert (made.finish_reason, made.message.content) == ("tool_calls", None)
        validate(made.message.tool_calls[0].function.arguments, WEATHER)
        assert made.message.tool_calls[0].id.startswith("call_")


def test_a_streamed_call_is_the_same_call(sdk: openai.OpenAI) -> None:
    shared_folder("tiny-llama")
    fields = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
    whole = ask(sdk, "tiny-llama", **fields).choices[0].message.tool_calls
    state: ChatCompletionStreamState[None] = ChatCompletionStreamState(input_tools=TOOLS)
    for chunk in ask(sdk, "tiny-llama", stream=True, **fields):
        state.handle_chunk(chunk)
    choice = state.get_final_completion().choices[0]
    assert choice.finish_reason == "tool_calls"
    streamed = choice.message.tool_calls
    assert streamed is not None
    assert [(c.function.name, c.function.arguments) for c in streamed] == [
        (c.function.name, c.function.arguments) for c in whole
    ]


def test_legacy_functions(sdk: openai.OpenAI) -> None:
    shared_folder("tiny-llama")
    functions = [TOOLS[0]["function"]]
    made = ask(sdk, "tiny-llama", functions=functions, function_call={"name": "get_weather"}).choices[0]
    assert (made.finish_reason, made.message.tool_calls) == ("function_call", None)
    validate(made.message.function_call.arguments, WEATHER)


def test_a_call_and_its_result_go_back_to_the_model(sdk: openai.OpenAI) -> None:
    shared_folder("tiny-llama")
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}
    history = [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [call]}]
    history.append({"role": "tool", "tool_call_id": "c1", "content": "sunny"})
    made = sdk.chat.completions.create(model="tiny-llama", messages=history, tools=TOOLS, max_tokens=20, temperature=0)
    assert made.choices[0].finish_reason in ("stop", "length", "tool_calls")
    assert made.usage.prompt_tokens > ask(sdk, "tiny-llama", max_tokens=1).usage.prompt_tokens


def test_a_key_may_lack_tools_and_schemas(several: PenstockProcess) -> None:
    shared_folder("tiny-llama")
    with several.http(ADMIN_KEY) as admin:
        admin.post("/admin/v1/accounts", json={"name": "talkers"}).raise_for_status()
        key = admin.post("/admin/v1/keys", json={"account": "talkers", "features": ["chat"]}).json()["key"]
    fields: list[tuple[str, dict[str, Any]]] = [
        ("tools", {"tools": TOOLS}),
        ("structured_output", {"response_format": {"type": "json_object"}}),
    ]
    with several.sdk(api_key=key) as talker:
        made = ask(talker, "tiny-llama", max_tokens=1, tools=TOOLS, tool_choice="none")
        assert made.choices[0].finish_reason == "length"
        for feature, body in fields:
            with pytest.raises(openai.PermissionDeniedError, match=f"'{feature}'"):
                ask(talker, "tiny-llama", **body)


def test_hostile_schemas_are_refused_and_others_go_on(several: PenstockProcess, sdk: openai.OpenAI) -> None:
    hostile: list[Any] = [
        {"allOf": [{"anyOf": [{"properties": {f"a{i}{j}": {"const": i}}} for i in range(12)]} for j in range(9)]},
        {"type": "string", "pattern": "((a{0,99}){0,99}){0,99}{0,99}"},
        {"$ref": "https://example.com/x"},
        {"type": "string", "pattern": "(?=a)"},
    ]
    before = time.monotonic()
    statuses = []
    with several.http() as http:
        for schema in hostile * 5:
            body = {"model": "tiny-chat", "messages": MESSAGES, "max_tokens": 5, "response_format": json_schema(schema)}
            statuses.append(http.post("/v1/chat/completions", json=body).status_code)
            assert ask(sdk, max_tokens=3).choices[0].finish_reason == "length"
    assert set(statuses) <= {200, 400}
    assert 400 in statuses
    print(f"{len(statuses)} hostile schemas in {time.monotonic() - before:.1f} s: {statuses}")
