"""Tools, schemas and thoughts of real models through Anthropic's client, as its documentation uses it."""

from __future__ import annotations

from typing import Any, Literal

import anthropic
import pytest
from anthropic import beta_tool
from pydantic import BaseModel

from tests.e2e.conftest import shared_folder
from tests.grammar_files import validate
from tests.penstock_process import API_KEY, PenstockProcess

QUESTION: list[Any] = [{"role": "user", "content": "What is the weather in Rome?"}]
WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [{"name": "get_weather", "description": "The weather of a city.", "input_schema": WEATHER}]
ASK: dict[str, Any] = {"model": "tiny-llama", "max_tokens": 300, "messages": QUESTION, "tools": TOOLS}


@pytest.fixture(scope="module")
def sdk(several: PenstockProcess) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=several.root_url, api_key=API_KEY, max_retries=0)


def test_a_loop_of_tools(sdk: anthropic.Anthropic) -> None:
    shared_folder("tiny-llama")
    with sdk.messages.stream(**ASK, tool_choice={"type": "any"}) as stream:
        made = stream.get_final_message()
    assert made.stop_reason == "tool_use"
    uses = [block for block in made.content if block.type == "tool_use"]
    assert uses
    for use in uses:
        assert use.name == "get_weather"
        validate(str(use.to_json()), {"properties": {"input": WEATHER}, "required": ["input"]})
    results: Any = [{"type": "tool_result", "tool_use_id": use.id, "content": "Sunny."} for use in uses]
    turns: Any = [{"role": "assistant", "content": made.content}, {"role": "user", "content": results}]
    answer = sdk.messages.create(**ASK | {"messages": QUESTION + turns, "tool_choice": {"type": "none"}})
    assert [block.type for block in answer.content] == ["text"]
    counted = sdk.messages.count_tokens(
        model="tiny-llama", messages=QUESTION + turns, tools=TOOLS, tool_choice={"type": "none"}
    )
    usage = answer.usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_one_tool_by_name(sdk: anthropic.Anthropic) -> None:
    shared_folder("tiny-llama")
    made = sdk.messages.create(**ASK, tool_choice={"type": "tool", "name": "get_weather"})
    (use,) = made.content
    assert use.type == "tool_use"
    assert use.input["city"] in ("Rome", "Oslo")


def test_the_sdks_own_loop(sdk: anthropic.Anthropic) -> None:
    """It asks for a thread, which servers of Anthropic's keep, and goes on without one when it is refused."""
    shared_folder("tiny-llama")
    cities = []

    @beta_tool
    def get_weather(city: Literal["Rome", "Oslo"]) -> str:
        """The weather of a city."""
        cities.append(city)
        return "Sunny."

    runner = sdk.beta.messages.tool_runner(
        model="tiny-llama", max_tokens=300, messages=QUESTION, tools=[get_weather], tool_choice={"type": "any"},
        max_iterations=2,
    )  # fmt: skip
    answers = list(runner)
    assert [answer.stop_reason for answer in answers] == ["tool_use", "tool_use"]
    assert cities
    assert set(cities) <= {"Rome", "Oslo"}


class Answer(BaseModel):
    is_sunny: bool


def test_an_answer_of_a_schema(sdk: anthropic.Anthropic) -> None:
    made = sdk.messages.parse(model="tiny-chat", max_tokens=300, messages=QUESTION, output_format=Answer)
    assert made.stop_reason == "end_turn"
    assert isinstance(made.parsed_output, Answer)


def test_a_schema_that_cannot_be_held_to_is_refused_by_its_name(sdk: anthropic.Anthropic) -> None:
    config: Any = {"format": {"type": "json_schema", "schema": {"uniqueItems": True}}}
    for is_streamed in (False, True):
        body: Any = {"model": "tiny-chat", "max_tokens": 9, "messages": QUESTION, "output_config": config}
        with pytest.raises(anthropic.BadRequestError, match=r"output_config\.format"):
            sdk.messages.create(**body, stream=is_streamed)
