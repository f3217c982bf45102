"""The Responses API before real models: schemas parsed, a loop of tools, images that a template has words for."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.e2e.conftest import shared_folder
from tests.e2e.test_structured import MESSAGES, WEATHER, Steps, closing
from tests.grammar_files import validate
from tests.penstock_process import PenstockProcess

TOOLS: list[Any] = [{"type": "function", "name": "get_weather", "parameters": WEATHER, "strict": True}]


@pytest.fixture
def sdk(several: PenstockProcess) -> openai.OpenAI:
    return several.sdk()


@pytest.mark.parametrize("streamed", [False, True])
def test_parse_gives_an_object(sdk: openai.OpenAI, streamed: bool) -> None:
    asked: Any = {"model": "tiny-chat", "input": MESSAGES, "text_format": Steps, "max_output_tokens": 400}
    asked["extra_body"] = {"logit_bias": closing(), "seed": 5}
    if streamed:
        with sdk.responses.stream(**asked) as stream:
            for _ in stream:
                pass
            made: Any = stream.get_final_response()
    else:
        made = sdk.responses.parse(**asked)
    assert made.status == "completed"
    assert isinstance(made.output_parsed, Steps)


def test_a_loop_of_tools(sdk: openai.OpenAI) -> None:
    """The call, its answer by `previous_response_id`, and the words that follow."""
    shared_folder("tiny-llama")
    asked: Any = {"model": "tiny-llama", "tools": TOOLS, "max_output_tokens": 100, "temperature": 0}
    made = sdk.responses.create(**asked, input=MESSAGES, tool_choice="required")
    (call,) = made.output
    assert call.type == "function_call"
    assert call.call_id.startswith("call_")
    validate(call.arguments, WEATHER)
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    after = sdk.responses.create(**asked, input=[output], previous_response_id=made.id)
    assert after.output
    assert after.usage is not None
    assert made.usage is not None
    assert after.usage.input_tokens > made.usage.input_tokens


def test_a_streamed_call_is_the_same_call(sdk: openai.OpenAI) -> None:
    shared_folder("tiny-llama")
    asked: Any = {"model": "tiny-llama", "input": MESSAGES, "tools": TOOLS, "max_output_tokens": 400, "temperature": 0}
    asked["tool_choice"] = {"type": "function", "name": "get_weather"}
    whole: Any = sdk.responses.create(**asked).output[0]
    events = list(sdk.responses.create(**asked, stream=True))
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    (done,) = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert len(deltas) > 1
    assert "".join(deltas) == done.arguments == whole.arguments
    assert done.name == "get_weather"


def test_no_tool_is_called_where_none_may_be(sdk: openai.OpenAI) -> None:
    shared_folder("tiny-llama")
    made = sdk.responses.create(
        model="tiny-llama", input=MESSAGES, tools=TOOLS, tool_choice="none", max_output_tokens=50
    )  # fmt: skip
    assert [item.type for item in made.output] == ["message"]


def test_an_image_is_what_the_template_writes_for_it(sdk: openai.OpenAI) -> None:
    shared_folder("tiny-llama")
    parts: Any = [
        {"type": "input_text", "text": "see "},
        {"type": "input_image", "image_url": "data:image/png;base64,"},
    ]
    counted = [
        sdk.responses.input_tokens.count(model="tiny-llama", input=[{"role": "user", "content": content}]).input_tokens
        for content in (parts, "see [image]", "see ")
    ]
    assert counted[0] == counted[1] > counted[2]
    with pytest.raises(openai.BadRequestError, match="'input_image' is not supported"):
        sdk.responses.create(model="tiny-chat", input=[{"role": "user", "content": parts}])


def test_a_compacted_conversation_goes_on(sdk: openai.OpenAI) -> None:
    compacted = sdk.responses.compact(model="tiny-chat", input=MESSAGES)
    made = sdk.responses.create(
        model="tiny-chat", input=[*[item.to_dict() for item in compacted.output], *MESSAGES], max_output_tokens=5
    )  # type: ignore[arg-type, misc]  # fmt: skip
    assert made.usage is not None
    assert made.usage.input_tokens > compacted.usage.output_tokens
    assert json.loads(made.to_json())["output"]
