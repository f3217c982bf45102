"""pydantic-ai, as its documentation uses it: an output type, a tool, a stream."""

import asyncio
import os
from typing import Literal

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.settings import ModelSettings


class Weather(BaseModel):
    city: Literal["Rome", "Oslo"]
    sunny: bool


model = OpenAIChatModel(os.environ["MODEL"])
settings = ModelSettings(max_tokens=200, temperature=0)
for output in (Weather, NativeOutput(Weather)):
    agent = Agent(model, output_type=output, model_settings=settings)
    assert isinstance(agent.run_sync("The weather in Rome?").output, Weather)

agent = Agent(model, model_settings=settings, instructions="You are brief.")


@agent.tool_plain
def get_weather(city: Literal["Rome", "Oslo"]) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


async def main() -> None:
    async with agent.run_stream("What is a quota?") as result:
        text = "".join([part async for part in result.stream_text(delta=True)])
    assert text
    assert result.usage.output_tokens > 0


asyncio.run(main())
